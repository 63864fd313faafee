"""agent.yaml on the disk, beside what the daemon goes by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nodeagent.config import load, load_to_start
from nodeagent.control.config_file import ConfigFile
from nodeagent.errors import ControlError
from nodeagent.logs.settings import LogSettings
from nodeagent.telemetry.metrics import CONFIG_FAULTS
from nodeagent.telemetry.store import Store

GOOD = """
source: /run/lab
redirect: {cgroup: /}
identity: {trustDomain: cluster.local, caDirectory: /run/ca}
logs: {sinks: [{name: out, file: {path: /tmp/out.jsonl}}]}
"""


@dataclasses.dataclass
class Logs:
    settings: LogSettings | None


class Disk:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.yaml"
        self.path.write_text(GOOD)
        config = load(self.path)
        self.logs = Logs(config.logs)
        self.file = ConfigFile(self.path, config, lambda: self.logs.settings)

    def becomes(self, text: str) -> list[str]:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)
        return self.file.warnings()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_what_is_in_force_is_no_warning(disk: Disk) -> None:
    assert disk.file.warnings() == []
    assert disk.becomes(f"# a comment\n{GOOD}") == []


def test_a_wrong_file_is_told_and_taken_by_no_reload(disk: Disk) -> None:
    (warning,) = disk.becomes(f"{GOOD}\nredirekt: {{}}\n")
    assert warning.startswith(f"{disk.path}: redirekt: no such key is known")
    assert warning.endswith("the daemon goes by agent.yaml as it was")
    with pytest.raises(ControlError, match=r"redirekt: no such key is known.*nothing is changed"):
        disk.file.read()
    assert disk.becomes(GOOD) == []
    assert disk.file.read().logs == disk.logs.settings


def test_a_file_that_is_gone_is_told(disk: Disk) -> None:
    disk.path.unlink()
    (warning,) = disk.file.warnings()
    assert "cannot be read" in warning


def test_what_only_a_restart_takes_is_told_apart_from_what_a_reload_does(disk: Disk) -> None:
    changed = GOOD.replace("/tmp/out", "/tmp/other") + "cluster: other\nmtls: {mode: STRICT}\n"
    assert disk.becomes(changed) == [
        f"{disk.path}: logs: what stands there now is not in force: nodeagent reload takes it",
        f"{disk.path}: cluster, mtls: what stands there now is not in force: a restart of the daemon takes it",
    ]
    disk.logs.settings = disk.file.read().logs
    (warning,) = disk.file.warnings()
    assert warning.startswith(f"{disk.path}: cluster, mtls: ")
    disk.logs.settings = None
    (warning,) = disk.becomes(GOOD)
    assert warning.startswith(f"{disk.path}: logs: "), "that logs are read at all takes a restart"
    assert warning.endswith("a restart of the daemon takes it")


def test_a_section_that_the_daemon_started_without_is_told_until_a_restart_takes_it(disk: Disk) -> None:
    wrong = GOOD.replace("file:", "fiel:")
    disk.becomes(wrong)
    config, faults = load_to_start(disk.path)
    disk.file = ConfigFile(disk.path, config, lambda: None, faults)
    (warning,) = disk.file.warnings()
    assert warning.startswith(f"{disk.path}: logs.sinks.0.fiel: no such key is known")
    assert warning.endswith("the daemon runs without that section")
    store = Store()
    disk.file.collect(store)
    assert store.value(CONFIG_FAULTS) == 1
    (warning,) = disk.becomes(GOOD)
    assert warning == f"{disk.path}: logs: what stands there now is not in force: a restart of the daemon takes it"
    (warning,) = disk.becomes(f"{wrong}redirekt: {{}}\n")
    assert "redirekt" in warning, "with that it would not start"
