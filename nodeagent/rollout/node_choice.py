"""On which nodes a DaemonSet's pods run: what its controller decides by (Kubernetes,
``pkg/controller/daemon/daemon_controller.go: NodeShouldRunDaemonPod``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from nodeagent.kube.access import KubeObject

TOLERATED: Final = "node.kubernetes.io/"
"""How the keys begin of taints that the controller has every DaemonSet's pods tolerate."""
KEEPING: Final = ("NoSchedule", "NoExecute")
OPERATORS: Final[Mapping[str, Callable[[str | None, list[str]], bool]]] = {
    "In": lambda found, values: found in values,
    "NotIn": lambda found, values: found not in values,
    "Exists": lambda found, values: found is not None,
    "DoesNotExist": lambda found, values: found is None,
    "Gt": lambda found, values: _whole(found) > _whole(values[0]),
    "Lt": lambda found, values: _whole(found) < _whole(values[0]),
}


def chosen(spec: KubeObject, nodes: Iterable[KubeObject]) -> list[KubeObject]:
    """Return those of *nodes* on which pods with *spec*, a DaemonSet's template's, run: by its nodeSelector, its
    required affinity and its tolerations.
    """
    return [node for node in nodes if _selected(spec, node) and _tolerated(spec, node)]


def _selected(spec: KubeObject, node: KubeObject) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(name) != value for name, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_matches(term, node) for term in required.get("nodeSelectorTerms") or ())


def _matches(term: KubeObject, node: KubeObject) -> bool:
    """Say whether *node* is one of a term; an empty one has none."""
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    asked = [(labels, each) for each in term.get("matchExpressions") or ()]
    asked += [(fields, each) for each in term.get("matchFields") or ()]
    return bool(asked) and all(
        OPERATORS[each["operator"]](found.get(each["key"]), each.get("values") or []) for found, each in asked
    )


def _whole(text: str | None) -> float:
    """Return the number that *text* is; NaN, which is neither less nor greater: it is none."""
    try:
        return int(text or "")
    except ValueError:
        return float("nan")


def _tolerated(spec: KubeObject, node: KubeObject) -> bool:
    taints = (node.get("spec") or {}).get("taints") or ()
    keeping = [each for each in taints if each.get("effect") in KEEPING and not each["key"].startswith(TOLERATED)]
    tolerations = spec.get("tolerations") or ()
    return all(any(_tolerates(each, taint) for each in tolerations) for taint in keeping)


def _tolerates(toleration: KubeObject, taint: KubeObject) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")
