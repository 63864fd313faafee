"""What of agent.yaml is wrong and ends no start: what protects nothing. All else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nodeagent import config
from nodeagent.cli.check import check
from nodeagent.cli.run import run
from nodeagent.errors import ConfigError

GOOD: dict[str, Any] = {
    "node": "a", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/ca"},
}  # fmt: skip
STDOUT = {"name": "out", "stdout": {}}
WRONG_LOGS: dict[str, Any] = {
    "parser": {"parsers": [{"name": "a", "type": "regex", "pattern": "("}], "sinks": [STDOUT]},
    "glob": {"files": [{"name": "a", "volume": "v", "path": "../x"}], "sinks": [STDOUT]},
    "URL": {"sinks": [{"name": "a", "loki": {"urls": ["nowhere"]}}]},
    "no sink": {"sinks": []},
    "a text": "on",
    "nothing": None,
}


def _written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "agent.yaml"
    path.write_text(json.dumps(GOOD | document))
    return path


@pytest.mark.parametrize("wrong", WRONG_LOGS)
def test_wrong_logs_are_left_out_and_named(tmp_path: Path, wrong: str) -> None:
    path = _written(tmp_path, {"logs": WRONG_LOGS[wrong], "telemetry": {"adminPort": 7}})
    with pytest.raises(ConfigError) as strict:
        config.load(path)
    found, faults = config.load_to_start(path)
    assert found.logs is None
    assert found.telemetry.admin_port == 7
    assert faults == (str(strict.value),)


def test_what_is_right_stays_beside_what_is_not(tmp_path: Path) -> None:
    log = {"path": "/log", "format": "json"}
    found, faults = config.load_to_start(_written(tmp_path, {"logs": {"sinks": []}, "telemetry": {"accessLog": log}}))
    assert found.telemetry.access_log.format == "json"
    assert len(faults) == 1
    telemetry = {"accessLog": {"path": "relative"}, "metricsPort": 8}
    found, (fault,) = config.load_to_start(_written(tmp_path, {"logs": {"sinks": [STDOUT]}, "telemetry": telemetry}))
    assert found.logs is not None
    assert (found.telemetry.access_log.path, found.telemetry.metrics_port) == ("-", 8)
    assert "telemetry.accessLog.path: an absolute path" in fault


def test_nothing_is_wrong_with_what_is_right(tmp_path: Path) -> None:
    path = _written(tmp_path, {"logs": {"sinks": [STDOUT]}, "telemetry": {"accessLog": {"format": "json"}}})
    assert config.load_to_start(path) == (config.load(path), ())


@pytest.mark.parametrize(
    "section",
    [
        {"redirect": {"cgroup": "/", "whenDead": "no"}},
        {"identity": {}},
        {"mtls": {"mode": "strict"}},
        {"telemetry": {"scrapes": "all"}},
        {"telemetry": None},
        {"proxy": {"workers": 0}},
        {"logz": {}},
    ],
)
def test_what_protects_ends_the_start(tmp_path: Path, section: dict[str, Any]) -> None:
    for logs in ({}, {"logs": {"sinks": []}}):
        with pytest.raises(ConfigError) as ended:
            config.load_to_start(_written(tmp_path, section | logs))
        assert f"agent.yaml: {next(iter(section))}" in str(ended.value)


def test_the_daemon_starts_and_check_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def main(settings: config.AgentConfig, path: Path, manager: object, faults: tuple[str, ...]) -> int:
        started.append((settings.logs, faults))
        return 0

    monkeypatch.setattr("nodeagent.agent.main", main)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    path = _written(tmp_path, {"logs": WRONG_LOGS["URL"]})
    assert CliRunner().invoke(run, ["-c", str(path)], standalone_mode=False).exception is None
    ((logs, (fault,)),) = started
    assert logs is None
    assert "logs.sinks.0.loki.urls.0" in fault
    refused = CliRunner().invoke(check, ["-c", str(path)], standalone_mode=False).exception
    assert isinstance(refused, ConfigError)
    assert str(refused) == fault
