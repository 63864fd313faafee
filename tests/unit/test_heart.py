"""How long a process's silence is borne by one that may have stood still itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent.heart import Patience, Progress


def test_silence_that_was_heard_awake_is_too_long() -> None:
    patience = Patience(30, asleep=30)
    assert [patience.over(now, felt=now < 40) for now in (0, 10, 20, 30, 40)] == [False] * 4 + [True]


def test_who_is_heard_is_never_given_up() -> None:
    patience = Patience(30, asleep=30)
    assert not any(patience.over(now, felt=True) for now in range(0, 1000, 10))


def test_a_machine_that_stood_still_is_nobodys_silence() -> None:
    """Input: nobody looked for a minute, and nothing was heard. Verdict: from then on it counts anew."""
    patience = Patience(30, asleep=30)
    assert not patience.over(0, felt=True)
    assert not patience.over(60, felt=False)
    assert not patience.over(80, felt=False)
    assert patience.over(90, felt=False)


def test_nobody_is_blamed_at_the_first_look() -> None:
    assert not Patience(30, asleep=30).over(1000, felt=False)


def stat(state: str, seconds: float) -> str:
    """Return ``/proc/PID/stat`` of a process in *state* that has used *seconds* of processors, half in the kernel."""
    half = int(seconds * os.sysconf("SC_CLK_TCK") / 2)
    return f"7 (a name) of (its) own) {state} " + " ".join(["0"] * 10 + [str(half)] * 2 + ["0"] * 30)


@pytest.mark.parametrize(
    ("looks", "starved"),
    [
        ([("R", 8.0), ("R", 8.5), ("R", 10.9)], True),  # runnable, and got next to nothing
        ([("R", 8.0), ("R", 11.0)], False),  # a loop that never ends
        ([("S", 8.0)], False),  # it waits for something else than a processor
        ([("R", 8.0), ("D", 8.1)], False),
        ([("R", 8.0), ("T", 8.0)], False),
    ],
)
def test_who_waits_for_a_processor_is_not_hung(looks: list[tuple[str, float]], starved: bool) -> None:
    progress = Progress()
    assert [progress.is_starved(stat(*look)) for look in looks][-1] is starved


def test_what_was_used_before_it_was_heard_does_not_count() -> None:
    progress = Progress()
    assert progress.is_starved(stat("R", 1.0))
    progress.heard()
    assert progress.is_starved(stat("R", 9.0))
    assert not progress.is_starved(stat("R", 12.0))


def test_the_kernel_says_it_of_a_real_process() -> None:
    assert Progress().is_starved(Path("/proc/self/stat").read_text())
