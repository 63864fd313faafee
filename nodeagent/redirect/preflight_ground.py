"""Where `nodeagent check` tries things: a cgroup and two network namespaces of its own, which are gone
afterwards, also when a check fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import netns, pins

_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the checks try: a cgroup, two network namespaces (no wire between them yet)."""

    cgroup: Path
    client: int
    server: int

    @property
    def pins(self) -> Path:
        return pins.BPFFS / self.cgroup.name


def find_cgroup2() -> Path:
    """Return where the cgroup2 hierarchy is mounted. Raises KernelError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point)
    raise KernelError("no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Make the ground and take it away. Raises OSError, KernelError."""
    with contextlib.ExitStack() as stack:
        cgroup = find_cgroup2() / f"nodeagent-check-{os.getpid()}"
        cgroup.mkdir()
        stack.callback(_remove_cgroup, cgroup)
        namespaces = []
        for _ in range(2):
            namespaces.append(netns.create())
            stack.callback(os.close, namespaces[-1])
        yield Ground(cgroup, *namespaces)


def _remove_cgroup(cgroup: Path) -> None:
    """A process that has ended leaves its cgroup a moment later."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
