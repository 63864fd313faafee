"""Start the lab's long-lived helpers, detached from the caller, each in its cgroup from its first instruction."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from nodeagent.lab import cgroup

_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


def joining(group: Path, argv: Sequence[str]) -> list[str]:
    """Return *argv* wrapped so that it runs in the cgroup *group*."""
    return ["sh", "-c", _JOIN, str(group), *argv]


def inside(netns: Path, argv: Sequence[str]) -> list[str]:
    """Return *argv* to be run in *netns*, every other namespace being the caller's (``ip netns
    exec`` would hide the cgroups).
    """
    return ["nsenter", f"--net={netns}", "--", *argv]


def spawn(argv: Sequence[str], group: Path, log: Path) -> int:
    """Start *argv* in *group*, in a session of its own, its output appended to *log*; return its
    pid once it is in the group.
    """
    group.mkdir(parents=True, exist_ok=True)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawnp("sh", joining(group, argv), os.environ, file_actions=actions, setsid=True)
    while pid not in cgroup.processes(group) and cgroup.reap(pid):
        time.sleep(0.001)
    return pid


def tail(log: Path, lines: int = 8) -> str:
    """Return the last *lines* of *log* for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
