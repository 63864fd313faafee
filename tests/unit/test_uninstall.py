"""What of a daemon outlives it on a node's disk, and goes with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeagent import uninstall
from nodeagent.config import AgentConfig
from nodeagent.kube.snapshot import NAME
from nodeagent.services.as_pods import UNIT


@pytest.mark.parametrize("others", [False, True])
def test_the_last_good_state_goes_with_its_own_folder_unless_somebody_elses_is_in_it(
    tmp_path: Path, others: bool
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / NAME).write_text("kept")
    (state / NAME).with_suffix(".new").write_text("not to its end")
    if others:
        (state / "theirs").write_text("")
    config = AgentConfig.model_validate(
        {
            "node": "node1",
            "kubernetes": {"stateDirectory": str(state)},
            "redirect": {"cgroup": "/sys/fs/cgroup"},
            "identity": {"caDirectory": str(tmp_path)},
        }
    )
    gone = [each.path for each in uninstall._state(config)]
    assert gone[:2] == [str(state / NAME), str(state / "cluster.new")]
    assert (len(gone) == 3) == (not others)
    assert state.exists() == others
    assert list(uninstall._state(config)) == []


def test_services_of_this_machine_are_told_no_more_and_others_are(tmp_path: Path) -> None:
    objects = tmp_path / "mesh" / "objects"
    objects.mkdir(parents=True)
    for node in ("node1", "node2"):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": node, "namespace": "old", "uid": node, "annotations": {UNIT: "a.service"}},
            "spec": {"nodeName": node},
        }
        (objects / f"Pod.old.{node}.json").write_text(json.dumps(pod))
    config = AgentConfig.model_validate(
        {
            "node": "node1",
            "source": str(tmp_path / "mesh"),
            "redirect": {"cgroup": "/sys/fs/cgroup"},
            "identity": {"caDirectory": str(tmp_path)},
        }
    )
    assert [each.path for each in uninstall._marks(config)] == [str(objects / "Pod.old.node1.json")]
    assert [path.name for path in objects.iterdir()] == ["Pod.old.node2.json"]
