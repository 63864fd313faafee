"""Whether a folder is mounted, by what the kernel lists."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.places.place import Place
from nodeagent.redirect import pod_mount
from nodeagent.redirect.pod_mount import is_mounted
from tests.waiting import DEADLINE, until

FOLDER = Path("/run/nodeagent/pods/u1")


def line(number: int, root: str, point: str) -> str:
    return f"{number} 1 0:{number} {root} {point} rw,relatime shared:1 - tmpfs none rw\n"


@pytest.mark.parametrize(
    ("lines", "target", "mounted"),
    [
        ("", "/run/s", False),
        (line(1, "/pods/u1", "/run/s"), "/run/s", True),
        (line(1, "/pods/u1", "/run/s") + line(2, "/", "/run/s"), "/run/s", False),
        (line(1, "/", "/run/s") + line(2, "/nodeagent/pods/u1", "/run/s") + line(3, "/", "/run/s/x"), "/run/s", True),
        (line(1, "/pods/u2", "/run/s"), "/run/s", False),
        (line(1, "/pods/u1", "/run/with\\040space\\134"), "/run/with space\\", True),
        (line(1, "/pods/u1", "/run/é"), "/run/é", True),
        (line(1, "/run/s", "/pods/u1") + line(2, "/x", "/run/x /pods/u1"), "/run/s", False),
    ],
)
def test_the_topmost_mount_decides(lines: str, target: str, mounted: bool) -> None:
    assert is_mounted(lines.encode(), FOLDER, target) == mounted


def test_a_hundred_thousand_mounts_cost_one_search() -> None:
    many = "".join(line(number, "/a", f"/mnt/{number}") for number in range(100_000)).encode()
    assert not is_mounted(many, FOLDER, "/run/s")
    assert is_mounted(line(1, "/pods/u1", "/run/s").encode() + many, FOLDER, "/run/s")


def test_a_file_system_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Input: the program that mounts hangs, as in a pod's own FUSE. Verdict: it is killed, told,
    and not tried again at once.
    """
    begun, program = tmp_path / "begun", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $$ >> {begun}\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr(pod_mount, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(pod_mount.sys, "executable", str(program))
    monkeypatch.setattr(pod_mount.PodMount, "_processes", lambda _: [os.getpid()])
    monkeypatch.setattr(pod_mount, "outsider", lambda *_: False)
    mount = pod_mount.PodMount(tmp_path, "/nowhere", Place("", ""))

    async def scene() -> None:
        for _ in range(2):
            with pytest.raises(KernelError, match="has not answered"):
                await mount.everywhere()
        (pid,) = begun.read_text().split()
        await until(lambda: not Path(f"/proc/{pid}").exists())

    asyncio.run(asyncio.wait_for(scene(), DEADLINE))
