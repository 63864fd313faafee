"""Names that keep labs apart, and addresses that fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.errors import LabError
from nodeagent.lab.agent import merge
from nodeagent.lab.cluster import Lab
from nodeagent.lab.layout import MAX_NODES, Layout, Node, read_objects, write_json


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "a" * 33, "a/b", ".."])
def test_a_name_that_could_be_taken_for_a_path_or_another_lab_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="--name"):
        Layout(name)


def test_the_last_node_still_has_addresses() -> None:
    node = Node(MAX_NODES)
    assert str(node.addresses[0]) == "172.18.0.210"
    assert str(node.pod_addresses(254)[1]) == "fd00:10:244:c8::fe"


def test_objects_are_read_by_kind_and_temporary_files_are_not(tmp_path: Path) -> None:
    write_json(tmp_path / "Pod.default.a.json", {"a": 1})
    write_json(tmp_path / "Service.default.a.json", {"a": 2})
    (tmp_path / ".Pod.default.b.json.1").write_text("{half")
    (tmp_path / ".Pod.default.b.json").write_text("{half")
    assert read_objects(tmp_path, "Pod.") == [{"a": 1}]
    assert read_objects(tmp_path) == [{"a": 1}, {"a": 2}]


def test_an_overlay_replaces_leaves_only() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [], "e": {}}) == {
        "a": {"b": 1, "c": 3},
        "d": [],
        "e": {},
    }


def test_a_lab_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no lab paper: nodeagent lab up --name paper"):
        Lab.open("paper", root=tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cluster.json").touch()
    with pytest.raises(LabError, match="there is no lab paper, but one, two: say --name"):
        Lab.open("paper", root=tmp_path)
