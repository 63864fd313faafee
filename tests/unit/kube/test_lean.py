"""What pods have in common is kept once, and stays what it is."""

from __future__ import annotations

import pytest

from nodeagent.kube.lean import MAX_TEXTS, MAX_VALUE, Lean, PackedTexts, useful
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


@pytest.mark.parametrize("count", [MAX_TEXTS, MAX_TEXTS + 1, 3000])
def test_very_many_labels_are_what_they_are_and_take_little_more_than_their_bytes(count: int) -> None:
    labels = {f"example.org/{number}": f"v{number}" for number in range(count)} | {"v7": "example.org/7"}
    found = Lean().texts(labels)
    assert isinstance(found, PackedTexts) == (count >= MAX_TEXTS)
    assert (found, dict(found), len(found)) == (labels, labels, len(labels))
    assert [found.get(name) for name in ("example.org/7", "v7", "v8", "", '"')] == [
        "v7",
        "example.org/7",
        None,
        None,
        None,
    ]
    assert found == Lean().texts(labels)
    assert {"v7": "example.org/7"}.items() <= found.items()


def test_of_another_nodes_annotations_those_are_kept_that_are_read_and_no_long_value() -> None:
    said = {"nodeagent.io/path": "kernel", "nodeagent.io/x": "y", "sidecar.istio.io/status": "{" * 200_000}
    assert useful(said) == {"nodeagent.io/path": "kernel", "sidecar.istio.io/status": "{" * MAX_VALUE}
