"""For which pods a policy is: the fields that Istio's policies of all kinds share
(type/v1beta1 WorkloadSelector, PolicyTargetReference).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.errors import ResourceError, shown
from nodeagent.resources.objects import NAME
from nodeagent.resources.part import Part

Labels = tuple[tuple[str, str], ...]
"""Labels that a pod must have, sorted; empty: every pod."""
SELECTING: Final = ("selector", "targetRef", "targetRefs")
"""The fields of a policy's spec that say which pods it is for; none: all of its namespace."""
_TARGETS: Final = (
    ("", "Service"),
    ("core", "Service"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)
_TARGET_KINDS: Final = (*_TARGETS, ("networking.istio.io", "ServiceEntry"))


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    """One of ``targetRefs``."""

    group: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which pods of a policy's namespace it is for: by their labels, or by what is in front of them."""

    selector: Labels = ()
    targets: tuple[PolicyTarget, ...] = ()


def selector(spec: Part) -> Labels:
    """Return the ``selector.matchLabels`` of a policy's *spec*, sorted; empty: every pod. Raises ResourceError."""
    if not spec.given("selector"):
        return ()
    part = spec.sub("selector")
    part.only("matchLabels")
    labels = part.texts("matchLabels")
    for key, value in labels.items():
        if not key or len(key) > 317 or len(value) > 63 or "*" in key or "*" in value:
            raise ResourceError(
                f"{part.at('matchLabels')}[{shown(key)}]: {shown(value)}: a label and its value are expected, "
                "without '*'"
            )
    return tuple(sorted(labels.items()))


def scope(spec: Part, namespace: str) -> Scope:
    """Return for which pods of *namespace* a policy with *spec* is: by ``selector``, ``targetRef`` or
    ``targetRefs``. Raises ResourceError.
    """
    if sum(spec.given(name) for name in SELECTING) > 1:
        raise spec.wrong("selector", "only one of selector, targetRef and targetRefs is allowed")
    given = [spec.sub("targetRef")] if spec.given("targetRef") else spec.items("targetRefs")
    if len(given) > 16:
        raise ResourceError(f"{spec.at('targetRefs')}: {len(given)} items: at most 16 are allowed")
    targets = []
    for part in given:
        part.only("group", "kind", "name", "namespace")
        target = PolicyTarget(
            part.text("group", ""), part.text("kind"), part.matching("name", NAME, "a lower-case DNS name")
        )
        if (target.group, target.kind) not in _TARGET_KINDS:
            words = ", ".join(f"{kind} ({group or 'core'})" for group, kind in _TARGET_KINDS if group != "core")
            raise part.wrong("kind", f"allowed: {words}, each with its group")
        if part.text("namespace", "") not in ("", namespace):
            raise part.wrong("namespace", f"only the policy's own namespace, {namespace}, is allowed")
        targets.append(target)
    return Scope(selector(spec), tuple(targets))
