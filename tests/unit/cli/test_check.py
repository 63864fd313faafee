"""Which configuration ``nodeagent check`` looks at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeagent.cli.check import check
from nodeagent.cli.run import AGENT_YAML
from nodeagent.errors import ConfigError
from nodeagent.redirect import preflight


@pytest.fixture(autouse=True)
def without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine is tried, nor has it a configuration."""

    def run(*_: object) -> Iterator[preflight.Finding]:
        yield preflight.Finding("BPF", True, True, "fine", "")

    monkeypatch.setattr(preflight, "run", run)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(Path, "exists", lambda path: False)


def test_one_that_is_named_has_to_be_there_the_usual_one_too() -> None:
    """In a pod it is mounted there, and a ConfigMap that is not there would leave nothing to look at."""
    named = CliRunner().invoke(check, ["-o", "json", "-c", str(AGENT_YAML)], standalone_mode=False)
    assert isinstance(named.exception, ConfigError)
    assert str(AGENT_YAML) in str(named.exception)


def test_where_none_is_named_nor_there_the_machine_is_looked_at() -> None:
    alone = CliRunner().invoke(check, ["-o", "json"], standalone_mode=False)
    assert alone.exception is None
    assert {row["feature"] for row in json.loads(alone.output)} >= {"BPF", "while no daemon lives"}


def test_a_runtime_that_asks_no_plugin_is_named_and_what_to_do(tmp_path: Path) -> None:
    """Verdict: the agent works without."""
    config = {
        "node": "node1",
        "kubernetes": {"runtime": str(tmp_path / "cri.sock"), "nri": str(tmp_path / "nri.sock")},
        "redirect": {"cgroup": "/sys/fs/cgroup"},
        "identity": {"caDirectory": str(tmp_path)},
    }
    path = tmp_path / "agent.yaml"
    path.write_text(json.dumps(config))
    done = CliRunner().invoke(check, ["-o", "json", "-c", str(path)], standalone_mode=False)
    assert done.exception is None, done.exception
    rows = {row["feature"]: row for row in json.loads(done.output)}
    found = rows["runtime waits (NRI)"]
    assert found["state"] == "absent"
    assert "there is no such socket" in found["detail"]
    assert "containerd 2" in found["detail"]
    assert "first packets may go by" in found["lost"]
