"""Any schedule of writing, rotating, looking, settling and being killed: no line is missing in the end, none
comes under a name that stood for another one.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nodeagent.logs.tail.interfaces import TailSettings
from tests.unit.logs.tail.rig import Rig

pytestmark = pytest.mark.timeout(600)
KEPT = 4
"""Rotated files at most; older ones are removed once they were handed over."""


class CopiedSchedules(RuleBasedStateMachine):
    """One application that numbers its lines, whose log is copied and truncated, and copies are compressed: each
    line has one name, whoever was killed meanwhile.
    """

    renamed = False
    """Whether logs are renamed, too: a small file that was truncated and renamed between two looks has copies that
    are taken for contents of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.rig = self.rig_in(self.folder)
        self.number = 0
        self.written: set[str] = set()
        self.torn = ""
        self.rotations = 0

    def rig_in(self, folder: Path) -> Rig:
        """Return what is tried."""
        return Rig(folder, TailSettings(turn_bytes=300, line_bytes=600))

    def teardown(self) -> None:
        self.rig.hold = False
        self.rig.room = True
        self.write(1, False)
        try:
            self.rig.settle()
            for _ in range(3):
                self.rig.look(20)
            missing = self.written - self.delivered()
            assert not missing, f"{sorted(missing)} are missing; there is {sorted(os.listdir(self.rig.logs))}"
            twice = [line for line, names in self.named().items() if len(names) > 1]
            assert self.renamed or not twice, f"{sorted(twice)} have two names"
        finally:
            self.rig.tail.close()
            shutil.rmtree(self.folder)

    def delivered(self) -> set[str]:
        """Lines as they stand in the contents that were delivered, where pieces of one line stand together."""
        contents: dict[bytes, list[tuple[int, bytes]]] = {}
        for (name, offset), line in self.rig.sink.lines.items():
            contents.setdefault(name, []).append((offset, line))
        found: set[str] = set()
        for pieces in contents.values():
            found.update(b"".join(line for _, line in sorted(pieces)).decode().split("\n"))
        return found

    def named(self) -> dict[str, set[bytes]]:
        """Return under which names each whole line came."""
        found: dict[str, set[bytes]] = {}
        for (name, _), line in self.rig.sink.lines.items():
            if line.endswith(b"\n") and (text := line.decode().rstrip("\n")) in self.written:
                found.setdefault(text, set()).add(name)
        return found

    @property
    def log(self) -> Path:
        return self.rig.logs / "app.log"

    def rotated(self) -> list[str]:
        return sorted(each for each in os.listdir(self.rig.logs) if each != "app.log")

    @rule(count=st.integers(1, 20), torn=st.booleans())
    def write(self, count: int, torn: bool) -> None:
        for _ in range(count):
            self.number += 1
            line = f"{self.number:06d} {'x' * (self.number * 7 % 40)}"
            if self.number % 97 == 0:
                line += "y" * 1500
            if not self.torn:
                self.written.add(line)
            self.rig.write("app.log", line)
            self.torn = ""
        if torn:
            self.number += 1
            self.torn = f"{self.number:06d} torn "
            self.rig.write("app.log", self.torn, end="")

    def _next(self) -> str:
        self.rotations += 1
        self.torn = ""
        return f"app.log.{self.rotations:04d}"

    @precondition(lambda self: self.log.exists())
    @rule(seen=st.booleans(), burst=st.sampled_from([0, 3, 60]))
    def copy_and_truncate(self, seen: bool, burst: int) -> None:
        shutil.copyfile(self.log, self.rig.logs / self._next())
        if seen:
            self.rig.look(0.3)
        os.truncate(self.log, 0)
        if burst:
            self.write(burst, False)

    @precondition(lambda self: any(not each.endswith(".gz") for each in self.rotated()))
    @rule(data=st.data())
    def compress(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([each for each in self.rotated() if not each.endswith(".gz")]))
        path = self.rig.logs / name
        (self.rig.logs / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()

    @rule(seconds=st.sampled_from([0.3, 2.0, 8.0]), count=st.integers(0, 20))
    def look(self, seconds: float, count: int) -> None:
        if count:
            self.write(count, False)
        self.rig.look(seconds)

    @rule(seconds=st.sampled_from([0.3, 2.0, 8.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.run(seconds)

    @rule(saved=st.booleans())
    def restart(self, saved: bool) -> None:
        self.rig.restart(saved)

    @rule(what=st.sampled_from(["save", "hold", "last", "room"]))
    def behind_it(self, what: str) -> None:
        """What those do who take the lines."""
        rig = self.rig
        if what == "save":
            rig.tail.save()
        elif what == "room":
            rig.room = not rig.room
        elif what == "last" and rig.held:
            rig.held.pop()()
        elif what == "hold":
            rig.hold = not rig.hold
            if not rig.hold:
                rig.settle()

    @invariant()
    def nothing_was_given_up(self) -> None:
        assert sum(each.bytes_lost for each in self.rig.tail.counts().values()) == 0


class Schedules(CopiedSchedules):
    """The same, and all that may happen to its files."""

    renamed = True

    @precondition(lambda self: self.log.exists())
    @rule()
    def rename(self) -> None:
        os.rename(self.log, self.rig.logs / self._next())

    @precondition(lambda self: len(self.rotated()) > KEPT)
    @rule()
    def remove_the_oldest(self) -> None:
        """Only when it was read: what nobody ever opened is lost to everybody."""
        hold, self.rig.hold = self.rig.hold, False
        room, self.rig.room = self.rig.room, True
        self.rig.settle()
        self.rig.look(70)
        self.rig.tail.save()
        self.rig.hold, self.rig.room = hold, room
        (self.rig.logs / self.rotated()[0]).unlink()


CopiedSchedules.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCopiedSchedules = CopiedSchedules.TestCase
Schedules.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedules = Schedules.TestCase
