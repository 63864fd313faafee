"""When a look for log files lets others of control have their turn."""

from __future__ import annotations

import pytest

from nodeagent.control.log_finder import _queued
from nodeagent.control.log_shares import SLICE_STEPS, TimeSlice


class Machine:
    """On which each step takes so much of a processor, waits so long for one, and for a disk."""

    def __init__(self, work: float = 0.0, queued: float = 0.0, disk: float = 0.0) -> None:
        self.steps = 0
        self.slice = TimeSlice(
            lambda: self.steps * work, lambda: self.steps * (work + queued + disk), lambda: self.steps * queued
        )

    def step(self) -> bool:
        self.steps += 1
        return self.slice.is_over()

    def steps_at_once(self) -> int:
        before = self.steps
        while not self.step():
            pass
        self.slice.begin()
        return self.steps - before


@pytest.mark.parametrize(
    ("machine", "steps"),
    [
        (Machine(work=0.001), 4),
        (Machine(disk=0.02), 3),
        (Machine(work=0.0001, disk=0.001), 40),
        (Machine(queued=1.0), SLICE_STEPS),
        (Machine(work=0.001, queued=1.0), 4),
        (Machine(), SLICE_STEPS),
    ],
)
def test_a_slice_is_over_after_what_takes_others_their_turn(machine: Machine, steps: int) -> None:
    assert abs(machine.steps_at_once() - steps) <= 1
    assert abs(machine.steps_at_once() - steps) <= 1, "so is the next one"


@pytest.mark.parametrize(
    ("machine", "seconds"),
    [
        (Machine(work=0.001), 1.0),
        (Machine(disk=0.001), 1.0),
        (Machine(work=0.001, disk=0.001, queued=1.0), 2.0),
        (Machine(queued=1.0), 0.0),
    ],
)
def test_what_was_waited_for_a_disk_is_spent_and_what_for_a_processor_is_not(machine: Machine, seconds: float) -> None:
    for _ in range(1000):
        if machine.step():
            machine.slice.begin()
    assert machine.slice.end() == pytest.approx(seconds)


def test_the_kernel_tells_for_how_long_a_processor_was_waited_for() -> None:
    before = _queued()
    assert 0 <= before <= _queued()
