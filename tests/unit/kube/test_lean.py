"""What pods have in common is kept once, and stays what it is."""

from __future__ import annotations

from nodeagent.kube.lean import Lean
from nodeagent.resources.objects import PodObject, parse


def parsed(name: str, annotations: dict[str, str]) -> PodObject:
    found = parse(
        {
            "kind": "Pod",
            "metadata": {"namespace": "default", "name": name, "uid": name, "annotations": annotations},
            "spec": {"nodeName": "node1", "containers": []},
        }
    )
    assert isinstance(found, PodObject)
    return found


def test_no_owners_and_no_annotations_are_not_taken_for_each_other() -> None:
    """Input: a pod that nobody owns, without containers or labels, before and after one without
    annotations. Verdict: each field has its own type, as the mesh could compile none of them else.
    """
    lean = Lean()
    annotated, bare = parsed("web", {"example.org/a": "b"}), parsed("web", {})
    assert lean.pod(annotated, full=True) == annotated
    assert lean.pod(bare, full=True) == bare
    assert Lean().pod(parsed("web", {}), full=False) == bare
