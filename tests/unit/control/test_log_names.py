"""Whose rotated file a name is."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.control.log_names import log_of
from nodeagent.logs.patterns import fits


@pytest.mark.parametrize(
    ("name", "part", "there", "log"),
    [
        # behind the name, whether the pattern fits it or not, whether the log is there at this moment or not
        ("app.log.1", "*.log", [], "app.log"),
        ("app.log.1", "*.log*", [], "app.log"),
        ("app.log.2.gz", "*.log*", [], "app.log"),
        ("app.log-20260101", "*", [], "app.log"),
        ("app.log.2026-01-01T10:00:00.1", "app.log*", ["app.log"], "app.log"),
        ("app.log.old", "*", ["app.log"], "app.log"),
        ("app~", "*", ["app"], "app"),
        ("app.1", "*", ["app"], "app"),
        # before the extension: only of a log that is there, and a date or compressed
        ("app-2026-01-01.log", "*.log", ["app.log"], "app.log"),
        ("app-2026-01-01.log", "*.log", [], "app-2026-01-01.log"),
        ("app.2026-01-01.0.log.gz", "*.log", ["app.log"], "app.log"),
        ("app-01-31-2026-2.log.gz", "*", ["app.log"], "app.log"),
        ("app.3.log.gz", "*.log*", ["app.log"], "app.log"),
        ("app-2026-01-01.log.gz", "*.log", ["app-2026-01-01.log"], "app-2026-01-01.log"),
        # logs of their own
        ("worker-1", "*", [], "worker-1"),
        ("svc.prod-1", "*", [], "svc.prod-1"),
        ("worker-1.log", "*.log", ["worker.log"], "worker-1.log"),
        ("app.log", "*.log", ["app.log"], "app.log"),
        ("2026-01-01.log", "*.log", [], "2026-01-01.log"),
        ("error.log", "*.log", ["app.log"], "error.log"),
        # nobody's
        ("notes.txt", "*.log", ["app.log"], ""),
        ("apply.log.x", "*.log", [], ""),
    ],
)
def test_whose_rotated_file_a_name_is(name: str, part: str, there: list[str], log: str) -> None:
    names = {each for each in [name, *there] if fits(part, each)}
    assert log_of(name, part, names.__contains__) == log


@pytest.mark.parametrize("part", ["*.none", "*"])
@pytest.mark.parametrize(
    "name", ["-1" * 120 + "x.log", "-.~_1" * 50 + "x", "1" * 250 + ".x", "-2026-01-01" * 20 + ".gz"]
)
def test_what_a_name_may_have_been_before_rotation_takes_linear_time_to_say(name: str, part: str) -> None:
    steps = 0

    class Counting(str):
        """A name of which each part that is looked at is counted."""

        __slots__ = ()

        def __getitem__(self, key: Any) -> str:
            nonlocal steps
            found = super().__getitem__(key)
            steps += len(found)
            return found

    log_of(Counting(name), part, set[str]().__contains__)
    assert steps <= 64 * 64
