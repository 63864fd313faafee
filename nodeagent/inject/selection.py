"""Whether a pod is to have a sidecar: Istio's rules. Pure.

Source: Istio's MutatingWebhookConfiguration (which namespaces and pods reach an injector) and
pkg/kube/inject: injectRequired (what it does then).
"""

from __future__ import annotations

from typing import Final

from nodeagent.inject.model import PROXY, PodNamespace, Skipped, show
from nodeagent.inject.shape import PodShape
from nodeagent.istio import INJECT, INJECTION_LABEL, REVISION_LABEL, STATUS, SYSTEM_NAMESPACES

DEFAULT_REVISION: Final = "default"
_YES: Final = ("y", "yes", "true", "on")


def refusal(pod: PodShape, namespace: PodNamespace, revision: str) -> Skipped | None:
    """Return why *pod* gets no sidecar from the injector of *revision* (empty: the default one); None: it gets one."""
    if STATUS in pod.annotations and any(container.name == PROXY for _, container in pod.containers()):
        return Skipped("already-injected", f"it has a sidecar already (annotation {STATUS})")
    if pod.spec.host_network:
        return Skipped("host-network", "it shares the node's network: capturing there would capture the node's traffic")
    if pod.spec.os and pod.spec.os.name == "windows":
        return Skipped("windows", "it is for Windows, where there is neither sidecar nor capture")
    if namespace.name in SYSTEM_NAMESPACES:
        return Skipped("system-namespace", f"{namespace.name} is a namespace of the system's own")
    return _not_meant(pod, namespace, revision or DEFAULT_REVISION) or _opted_out(pod)


def _not_meant(pod: PodShape, namespace: PodNamespace, revision: str) -> Skipped | None:
    """Return why neither the namespace nor the pod asks for this injector; None: one does. The
    namespace's istio-injection label beats its istio.io/rev, and either beats the pod's.
    """
    if INJECTION_LABEL in namespace.labels:
        if namespace.labels[INJECTION_LABEL] != "enabled":
            return Skipped(
                "namespace-disabled",
                f"namespace {namespace.name}: {INJECTION_LABEL}={namespace.labels[INJECTION_LABEL]}",
            )
        return (
            None if revision == DEFAULT_REVISION else _other(f"namespace {namespace.name}", DEFAULT_REVISION, revision)
        )
    if REVISION_LABEL in namespace.labels:
        wanted = namespace.labels[REVISION_LABEL]
        return None if wanted == revision else _other(f"namespace {namespace.name}", wanted, revision)
    if REVISION_LABEL in pod.labels:
        wanted = pod.labels[REVISION_LABEL]
        return None if wanted == revision else _other("the pod", wanted, revision)
    if pod.labels.get(INJECT) == "true":
        return None if revision == DEFAULT_REVISION else _other("the pod", DEFAULT_REVISION, revision)
    return Skipped(
        "not-asked",
        f"neither namespace {namespace.name} ({INJECTION_LABEL}, {REVISION_LABEL}) nor the pod (label "
        f"{INJECT}) asks for a sidecar",
    )


def _other(who: str, wanted: str, revision: str) -> Skipped:
    return Skipped("other-revision", f"{who} asks for revision {wanted}; this one is {revision}")


def _opted_out(pod: PodShape) -> Skipped | None:
    """The label beats the annotation, even when it is empty, which says nothing; every word but YAML's for true is a
    no.
    """
    place, held = ("label", pod.labels) if INJECT in pod.labels else ("annotation", pod.annotations)
    word = held.get(INJECT, "")
    if not word or word.lower() in _YES:
        return None
    return Skipped("opted-out", f"its {place} {INJECT} is {show(word)}")
