"""A daemon as systemd runs it: in a cgroup of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nodeagent.lab import cgroup, http

_UNIT = ("system.slice", "nodeagent.service")


def in_unit(command: Sequence[str]) -> list[str]:
    """Return the command that runs *command* in the cgroup that systemd gives the unit."""
    group = cgroup.hierarchy().joinpath(*_UNIT)
    group.mkdir(parents=True, exist_ok=True)
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]


def unit_removed() -> None:
    """End what is left in that cgroup, and remove it."""
    cgroup.remove(cgroup.hierarchy() / _UNIT[0])


def ready() -> bool:
    """Say whether a daemon of this network is ready."""
    with suppress(OSError):
        return http.get(Path("/proc/self/ns/net"), 15021, "/ready")[0] == 200
    return False
