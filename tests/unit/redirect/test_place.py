"""Whether a folder is mounted, by what the kernel lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.redirect.place import is_mounted

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
