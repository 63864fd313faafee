"""Whether a pod is in the mesh, and why: the rules, pure.

Theory of operation
-------------------

Three verdicts. ``captured``: the agent takes the pod's traffic. ``left alone``: it never does, and
the kernel is told, so that fail-closed capture does not cut the pod. ``undecided``: what decides is
not known yet, and the kernel treats the pod as ``redirect.unknownPods`` says.

The first rule that has something to say decides:

    1. what cannot or must not be captured: a pod on the node's network, the agent's own, one that
       brings a proxy, one that Istio's ztunnel has taken
    2. ``redirect.enroll: none``
    3. the pod's own word: ``nodeagent.io/dataplane: enabled | disabled``, a label before an
       annotation; ``nodeagent.io/enroll: true | false`` means the same
    4. an Envoy beside the application, which by all appearance is its sidecar
    5. the pod's ``istio.io/dataplane-mode``, with ``redirect.ambientLabels``
    6. the same two of its namespace
    7. ``redirect.enroll``: ``all``, but the namespaces of the cluster itself, or ``labelled``: nobody

``istio-injection: enabled`` and ``istio.io/rev`` ask for a classic sidecar, not for the agent. Where
a webhook answers them, the pod has one and rule 1 holds. Where none does, the pod is what it would
be without the label, and the reason says that nobody gave it a sidecar: capture by another's label
would change pods that nobody asked about.

A wrong value is a fault that names what is allowed, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.istio import (
    AMBIENT_MODE,
    AMBIENT_REDIRECTION,
    INJECT,
    INJECTION_LABEL,
    REVISION_LABEL,
    STATUS,
    SYSTEM_NAMESPACES,
)
from nodeagent.resources.objects import NamespaceObject, PodObject

Verdict = Literal["captured", "left alone", "undecided"]
Enroll = Literal["all", "labelled", "none"]
"""``redirect.enroll``."""
DATAPLANE: Final = "nodeagent.io/dataplane"
ENROLL: Final = "nodeagent.io/enroll"
"""What DATAPLANE was called first; of pods alone."""
PART_OF: Final = ("app.kubernetes.io/part-of", "nodeagent")
"""The label of the agent's own pods."""
NAMESPACE: Final = "nodeagent-system"
"""Where they are, unless somebody installs them elsewhere."""
_WISHES: Final[dict[str, dict[str, Verdict]]] = {
    DATAPLANE: {"enabled": "captured", "disabled": "left alone"},
    ENROLL: {"true": "captured", "false": "left alone"},
}
_AMBIENT: Final[dict[str, Verdict]] = {"ambient": "captured", "none": "left alone"}


@dataclass(frozen=True, slots=True)
class Membership:
    """What was decided of a pod."""

    verdict: Verdict
    why: str
    """In words, for people."""


@dataclass(frozen=True, slots=True)
class MembershipRules:
    """What the node's configuration says of it."""

    enroll: Enroll = "all"
    ambient_labels: bool = False
    """Whether ``istio.io/dataplane-mode`` is followed (``redirect.ambientLabels``)."""


EVERY_POD: Final = MembershipRules()


def membership(
    pod: PodObject,
    namespace: NamespaceObject | None,
    rules: MembershipRules,
    istio_here: str,
    faults: list[str],
) -> Membership:
    """Return whether *pod* of this node is in the mesh by *rules*; what is wrong goes to *faults*.

    *namespace*: the pod's, None while it is not known. *istio_here*: which of Istio's own node
    programs runs on this node, in words; empty: none does.
    """
    apart = _apart(pod)
    if apart or rules.enroll == "none":
        return Membership("left alone", apart or "redirect.enroll is none")
    wish = _wish(pod.labels, pod.annotations, "", _WISHES, faults)
    if wish is not None:
        return wish
    if pod.proxy is not None:
        return Membership("left alone", f"it brings a proxy: {pod.proxy.words}; {DATAPLANE}: enabled captures it")
    mode = _mode(pod.labels, "its own", rules, istio_here, faults)
    if mode is not None:
        return mode
    if namespace is None:
        return _of_unknown_namespace(pod, rules)
    whose = f"Namespace {namespace.name}: "
    wish = _wish(namespace.labels, namespace.annotations, whose, {DATAPLANE: _WISHES[DATAPLANE]}, faults)
    mode = _mode(namespace.labels, "its namespace's", rules, istio_here, faults)
    return wish or mode or _unasked(pod, namespace, rules)


def _apart(pod: PodObject) -> str:
    """Return why *pod* is never captured, whatever anybody asks for; empty: it may be."""
    if pod.host_network:
        return "it is on the node's own network"
    if pod.namespace == NAMESPACE or pod.labels.get(PART_OF[0]) == PART_OF[1]:
        return "it is the agent's own"
    if STATUS in pod.annotations:
        return f"it brings a proxy: annotation {STATUS}"
    if pod.proxy is not None and pod.proxy.certain:
        return f"it brings a proxy: {pod.proxy.words}"
    if pod.annotations.get(AMBIENT_REDIRECTION) == "enabled":
        return f"Istio's ztunnel takes its traffic: annotation {AMBIENT_REDIRECTION}"
    return ""


def _wish(
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    whose: str,
    names: Mapping[str, Mapping[str, Verdict]],
    faults: list[str],
) -> Membership | None:
    """Return what the first good label or annotation with one of *names* asks for, None without one."""
    for kind, name, text in _given(labels, annotations, names):
        allowed = names[name]
        verdict = allowed.get(text.lower() if name == ENROLL else text)
        if verdict is not None:
            return Membership(verdict, f"{whose}{kind} {name}: {text}")
        faults.append(
            f"{whose}metadata.{kind}s[{name}]: {text!r:.80}: {', '.join(allowed)} are allowed; it has no effect"
        )
    return None


def _given(
    labels: Mapping[str, str], annotations: Mapping[str, str], names: Mapping[str, object]
) -> Iterator[tuple[str, str, str]]:
    for name in names:
        if name in labels:
            yield "label", name, labels[name]
        if name in annotations:
            yield "annotation", name, annotations[name]


def _mode(
    labels: Mapping[str, str], whose: str, rules: MembershipRules, istio_here: str, faults: list[str]
) -> Membership | None:
    """Return what Istio's label of ambient mode asks for, None where it says nothing or is not followed."""
    text = labels.get(AMBIENT_MODE)
    if text is None or not rules.ambient_labels:
        return None
    verdict = _AMBIENT.get(text)
    if verdict is None:
        faults.append(f"{whose} label {AMBIENT_MODE}: {text!r:.80}: {', '.join(_AMBIENT)} are allowed; no effect")
        return None
    if istio_here and verdict == "captured":
        return Membership("left alone", f"{whose} label {AMBIENT_MODE}: ambient is Istio's here: {istio_here}")
    return Membership(verdict, f"{whose} label {AMBIENT_MODE}: {text}")


def _of_unknown_namespace(pod: PodObject, rules: MembershipRules) -> Membership:
    """Return the verdict while nobody has told of the pod's namespace: a folder never need to."""
    if rules.enroll == "labelled":
        return Membership("undecided", f"Namespace {pod.namespace} is not known yet")
    return _by_default(pod.namespace)


def _by_default(namespace: str) -> Membership:
    if namespace in SYSTEM_NAMESPACES:
        return Membership("left alone", f"Namespace {namespace} is the cluster's own; {DATAPLANE}: enabled captures it")
    return Membership("captured", "redirect.enroll is all")


def _unasked(pod: PodObject, namespace: NamespaceObject, rules: MembershipRules) -> Membership:
    """Return what holds for a pod of which nobody says anything."""
    if rules.enroll == "all":
        return _by_default(namespace.name)
    why = f"neither it nor its namespace says {DATAPLANE}: enabled"
    asked = _sidecar_asked(pod, namespace)
    if asked:
        why += f"; {asked} asks for a sidecar, and no webhook gave it one"
    if not rules.ambient_labels and AMBIENT_MODE in {**namespace.labels, **pod.labels}:
        why += f"; {AMBIENT_MODE} is followed with redirect.ambientLabels alone"
    return Membership("left alone", why)


def _sidecar_asked(pod: PodObject, namespace: NamespaceObject) -> str:
    """Return what asks for a classic sidecar in *pod*, in words; empty: nothing, or it opts out."""
    own = pod.labels.get(INJECT) or pod.annotations.get(INJECT, "")
    if own:
        return f"{INJECT}: true" if own == "true" else ""
    for whose, labels in (("its", pod.labels), ("its namespace's", namespace.labels)):
        if labels.get(INJECTION_LABEL) == "enabled":
            return f"{whose} label {INJECTION_LABEL}: enabled"
        if labels.get(REVISION_LABEL):
            return f"{whose} label {REVISION_LABEL}: {labels[REVISION_LABEL]}"
    return ""
