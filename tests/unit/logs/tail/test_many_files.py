"""Thousands of files in one log cost what they are, not their square; counted in calls, not in time."""

from __future__ import annotations

import cProfile
import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nodeagent.logs.tail import judge, log
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import ENOUGH
from nodeagent.logs.tail.interfaces import LogSource, SourceKey, TailSettings
from nodeagent.logs.tail.tail import CLOSE_SECONDS
from nodeagent.vocabulary import PodUid
from tests.unit.logs.tail.rig import Rig
from tests.unit.logs.tail.test_schedules import Schedules

OTHER = LogSource(SourceKey("uid-1/other"), PodUid("uid-1"))
FEWER = 150
MORE = 600
COUNTED = ("<built-in method posix.pread>", "<built-in method posix.fstat>", "write", "entry", "calls")
"""What is counted: reads, looks, writes of the positions file, entries of them, and all calls of functions."""
BANNER = "".join(f"{number}. what every file begins with\n" for number in range(200))
assert len(BANNER) > ENOUGH


@dataclass(frozen=True, slots=True)
class Shape:
    """How files of a log are alike."""

    name: str
    content: Callable[[int], str]
    suffix: str = ""

    def make(self, rig: Rig, count: int) -> None:
        for number in range(count):
            content = self.content(number).encode()
            path = rig.logs / f"{number:04}.log{self.suffix}"
            path.write_bytes(gzip.compress(content) if self.suffix else content)


SHAPES = (
    Shape("unlike", lambda number: "".join(f"{line} of {number}\n" for line in range(20))),
    Shape("with one banner", lambda number: f"{BANNER[:700]}and then {number}\n" + "more\n" * 80),
    Shape("alike", lambda _: BANNER),
    Shape("without an end", lambda number: f"of {number} alone"),
    Shape("compressed", lambda number: "".join(f"{line} of {number}\n" for line in range(20)), ".gz"),
)


class Costs:
    """What each part of the life of so many files costs, in calls."""

    def __init__(self, rig: Rig, count: int, shape: Shape) -> None:
        self._rig = rig
        self.parts: dict[str, Counter[str]] = {}
        shape.make(rig, count)
        self._count("first read", lambda: rig.look(70))
        assert len(rig.tail.counts()) == 1
        self._count("idle", lambda: rig.run(10))
        self._count("what they tell", lambda: list(rig.tail.status()))
        if not shape.suffix:
            self._count("some grow", lambda: self._grow(count))
        rig.restart()
        self._count("restart", lambda: rig.look(10))
        rig.restart()
        self._count("as another log", self._scan_as_another)
        self._count("removed", self._remove)
        assert rig.tail.remembered() == 0

    def _grow(self, count: int) -> None:
        for _ in range(10):
            for number in range(0, count, count // 10):
                self._rig.write(f"{number:04}.log", "more")
            self._rig.run(1)

    def _scan_as_another(self) -> None:
        self._rig.scan(OTHER)
        self._rig.run(10)

    def _remove(self) -> None:
        for each in self._rig.logs.iterdir():
            each.unlink()
        self._rig.run(2 * self._rig.settings.forget_seconds)

    def _count(self, part: str, work: Callable[[], object]) -> None:
        profile = cProfile.Profile()
        profile.runcall(work)
        counted: Counter[str] = Counter()
        for each in profile.getstats():
            name = each.code if isinstance(each.code, str) else each.code.co_name
            counted[name] += each.callcount
            counted["calls"] += each.callcount
        self.parts[part] = counted


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_what_a_file_costs_does_not_depend_on_how_many_there_are(tmp_path: Path, shape: Shape) -> None:
    found: list[Costs] = []
    for count in (FEWER, MORE):
        folder = tmp_path / str(count)
        folder.mkdir()
        rig = Rig(folder, TailSettings(forget_seconds=20))
        found.append(Costs(rig, count, shape))
        rig.tail.close()
    fewer, more = (each.parts for each in found)
    times = MORE / FEWER
    beyond = {
        (part, what): (fewer[part][what], more[part][what])
        for part in fewer
        for what in COUNTED
        if more[part][what] > 1.3 * times * fewer[part][what] + 50
    }
    assert not beyond


def test_a_disk_that_is_slow_to_free_what_was_removed_keeps_nothing_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    close = OpenFile.close
    closed: list[int] = [0]

    def slowly(file: OpenFile) -> None:
        close(file)
        rig.now += CLOSE_SECONDS / 4
        closed[-1] += 1

    for number in range(FEWER):
        rig.write(f"{number}.log", "line")
    rig.look()
    for each in rig.logs.iterdir():
        each.unlink()
    monkeypatch.setattr(OpenFile, "close", slowly)
    end = rig.now + 60
    while rig.now < end:
        rig.now += max(rig.turn(), 0.001)
        closed.append(0)
    assert sum(closed) == len(rig.tail.closed()) == FEWER
    assert max(closed) <= 5, "others have their turn meanwhile"
    rig.tail.close()


class ManySchedules(Schedules):
    """Any schedule, where each log is taken for one of many files."""

    def rig_in(self, folder: Path) -> Rig:
        self._few = judge.FEW, log.FEW
        judge.FEW, log.FEW = -1, 0  # type: ignore[misc]
        return super().rig_in(folder)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            judge.FEW, log.FEW = self._few  # type: ignore[misc]


ManySchedules.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestManySchedules = ManySchedules.TestCase
