"""What systemd says of units: its words, and those who do not say them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.services.units import Systemctl, Unit, namespace_file, parsed

# As systemd 252 prints them.
TEXT = """\
MainPID=4711
NetworkNamespacePath=/run/netns/legacy
LogsDirectory=legacy legacy/audit
Slice=system.slice
ControlGroup=/system.slice/legacy.service
LoadState=loaded
ActiveState=active

MainPID=0
NetworkNamespacePath=
LogsDirectory=
Slice=machines-old.slice
ControlGroup=
LoadState=loaded
ActiveState=activating

MainPID=0
LoadState=not-found
ActiveState=inactive
"""
NAMES = ("legacy.service", "old@1.service", "typo.service")


def test_units_are_read_in_the_order_in_which_they_were_asked_for() -> None:
    legacy, old, typo = parsed(NAMES, TEXT).values()
    assert legacy == Unit(
        name="legacy.service",
        loaded="loaded",
        state="active",
        pid=4711,
        cgroup="/system.slice/legacy.service",
        namespace="/run/netns/legacy",
        logs=("legacy", "legacy/audit"),
    )
    assert old.cgroup == "/machines.slice/machines-old.slice/old@1.service"
    assert (legacy.ready, legacy.passing, old.ready, old.passing) == (True, False, False, True)
    assert typo.loaded == "not-found" and not typo.cgroup


@pytest.mark.parametrize("text", ["", TEXT.replace("\n\n", "\n"), "MainPID=1\n\n" * 4])
def test_another_number_of_units_is_no_answer(text: str) -> None:
    with pytest.raises(KernelError, match="asked for 3 units"):
        parsed(NAMES, text)


def test_the_network_that_a_unit_is_given_is_there_before_its_process() -> None:
    legacy, old, _ = parsed(NAMES, TEXT).values()
    assert namespace_file(legacy) == Path("/run/netns/legacy")
    assert namespace_file(old) is None
    private = parsed(("a.service",), "MainPID=7\nLoadState=loaded\n")["a.service"]
    assert namespace_file(private) == Path("/proc/7/ns/net")


def program(folder: Path, script: str) -> str:
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_names_are_no_options_for_systemctl(tmp_path: Path) -> None:
    asked = program(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/asked; printf "LoadState=loaded\\n"')
    assert asyncio.run(Systemctl(asked).look(["a.service"]))["a.service"].loaded == "loaded"
    assert (tmp_path / "asked").read_text().splitlines()[-2:] == ["--", "a.service"]


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo 'System has not been booted with systemd' >&2; exit 1", "not been booted with systemd"), (None, "No such")],
)
def test_a_machine_without_systemd_is_named(tmp_path: Path, script: str | None, words: str) -> None:
    asked = program(tmp_path, script) if script else str(tmp_path / "nothing")
    with pytest.raises(KernelError, match=words):
        asyncio.run(Systemctl(asked).look(["a.service"]))


def test_one_unit_that_is_none_takes_no_other_away(tmp_path: Path) -> None:
    script = 'case "$*" in *web@.service*) echo "Unit name web@.service is neither" >&2; exit 1;; esac'
    units = asyncio.run(
        Systemctl(program(tmp_path, f'{script}; printf "LoadState=loaded\\n"')).look(["a.service", "web@.service"])
    )
    assert {name: unit.loaded for name, unit in units.items()} == {"a.service": "loaded", "web@.service": ""}


def test_of_no_unit_nobody_is_asked(tmp_path: Path) -> None:
    """``systemctl show`` without a name tells of systemd itself."""
    assert asyncio.run(Systemctl(str(tmp_path / "nothing")).look([])) == {}
