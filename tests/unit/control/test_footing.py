"""What control stands on, by its configuration."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from nodeagent.config import load
from nodeagent.control import footing
from nodeagent.services.as_pods import UNIT, Machine
from nodeagent.services.follower import Services

MACHINE = Machine("node-a", uuid.UUID(int=1), Path("/sys/fs/cgroup"), network=1, captured=Path("/sys/fs/cgroup"))
CONFIG = """
node: node-a
source: {folder}
runtimeDirectory: {folder}/run
redirect: {{cgroup: /sys/fs/cgroup}}
identity: {{caDirectory: /ca}}
services: []
"""


@pytest.mark.parametrize(("node", "left"), [("node-a", 0), ("node-b", 1)])
def test_services_that_are_taken_out_of_the_configuration_leave_no_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str, left: int
) -> None:
    """Input: an earlier daemon's pod of this node, or of another."""
    monkeypatch.setattr(footing, "this_machine", lambda _: MACHINE)
    (tmp_path / "objects").mkdir()
    pod = {"kind": "Pod", "metadata": {"annotations": {UNIT: "legacy.service"}}, "spec": {"nodeName": node}}
    (tmp_path / "objects" / "Pod.old.legacy.json").write_text(json.dumps(pod))
    (tmp_path / "agent.yaml").write_text(CONFIG.format(folder=tmp_path))

    async def scenario() -> None:
        found = footing.open_footing(load(tmp_path / "agent.yaml"))
        await found.source.changes()
        for services in found.concerns:
            assert isinstance(services, Services)
            services.publish()
        found.source.close()

    asyncio.run(scenario())
    assert len(list((tmp_path / "objects").iterdir())) == left


def test_a_folder_that_holds_no_objects_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(CONFIG.format(folder=tmp_path))

    async def scenario() -> None:
        found = footing.open_footing(load(tmp_path / "agent.yaml"))
        await found.source.changes()
        (words,) = found.warnings()
        assert words.startswith(f"source: {tmp_path}: objects cannot be read")
        (tmp_path / "objects").mkdir()
        assert found.warnings() == []
        found.source.close()

    asyncio.run(scenario())
