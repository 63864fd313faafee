"""A worker polls only while its events come soon and one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from nodeagent.proxy.busy_poll import BusyPoll

LIMIT = 100e-6
SOON, LATE = 30e-6, 150e-6


class Worker:
    """A loop whose turns the test makes, and a clock that it sets."""

    def __init__(self, seconds: float = LIMIT) -> None:
        self.now = 1000.0
        self.due: list[Callable[[], None]] = []
        self.poll = BusyPoll(cast(asyncio.AbstractEventLoop, self), seconds, lambda: self.now)

    def call_soon(self, callback: Callable[[], None], *_: Any) -> None:
        self.due.append(callback)

    def events(self, count: int, gap: float) -> None:
        """*count* events, all in one turn."""
        for _ in range(count):
            self.now += gap
            self.poll.event(self.now)

    def one_by_one(self, count: int, gap: float) -> None:
        """*count* events with turns between them."""
        for _ in range(count):
            self.turn(gap / 2)
            self.turn()
            self.events(1, gap / 2)

    def turn(self, seconds: float = 0.0) -> bool:
        """Make one turn of the loop, *seconds* after the last; say whether it would sleep now."""
        self.now += seconds
        due, self.due = self.due, []
        for callback in due:
            callback()
        return not self.due


@pytest.fixture
def busy() -> Worker:
    worker = Worker()
    worker.one_by_one(200, SOON)
    worker.turn()
    worker.turn()
    assert worker.poll.polling
    return worker


def test_it_begins_after_dozens_of_events_that_came_soon() -> None:
    worker = Worker()
    worker.one_by_one(20, SOON)
    assert worker.turn()
    worker.one_by_one(100, SOON)
    assert not worker.turn()


def test_events_far_apart_are_slept_for() -> None:
    worker = Worker()
    worker.one_by_one(1000, LATE)
    assert worker.turn()


@pytest.mark.parametrize(("soon", "polls"), [(1, False), (9, True)], ids=["every second one", "nine of ten"])
def test_how_many_must_come_soon(soon: int, polls: bool) -> None:
    """One of two is not enough, as when the application answers at once and the next request is
    far: looking for it would be in vain.
    """
    worker = Worker()
    for _ in range(300):
        worker.one_by_one(soon, SOON)
        worker.one_by_one(1, LATE)
    assert worker.turn() is not polls


def test_zero_is_never() -> None:
    worker = Worker(0)
    worker.one_by_one(1000, 0.0)
    assert worker.turn()


def test_one_callback_is_due_at_a_time(busy: Worker) -> None:
    for _ in range(50):
        busy.events(1, SOON)
        busy.turn()
        busy.turn()
        assert len(busy.due) == 1


def test_it_looks_until_the_limit_and_then_sleeps(busy: Worker) -> None:
    busy.turn()
    assert not busy.turn(LIMIT * 0.9)
    assert busy.turn(LIMIT * 0.2)
    assert not busy.poll.polling
    busy.events(1, SOON)
    assert not busy.turn(), "one long wait does not make the next event less likely"


def test_one_event_at_a_time_goes_on_for_ever(busy: Worker) -> None:
    busy.one_by_one(1000, SOON)
    assert not busy.turn()


def test_events_without_a_pause_end_it_for_a_while(busy: Worker) -> None:
    """Many connections at once: the loop does not sleep by itself, and others want the processor."""
    busy.events(4, 1e-6)
    assert busy.turn()
    busy.one_by_one(100, SOON)
    assert busy.turn()
    busy.now += 0.06
    busy.one_by_one(30, SOON)
    assert not busy.turn()


def test_few_events_in_one_turn_do_not(busy: Worker) -> None:
    busy.events(3, 1e-6)
    assert not busy.turn()


def test_what_it_spends_in_vain_is_told_once(busy: Worker) -> None:
    busy.poll.share()
    busy.turn()
    for _ in range(5):
        busy.turn(10e-6)
    busy.events(1, 10e-6)
    busy.turn()
    busy.now += 40e-6
    assert busy.poll.share() == pytest.approx(0.5)
    busy.now += 100e-6
    assert busy.poll.share() == 0
