"""A disk that does not give what stands in a log: it is said, tried again, and nothing of it is lost or comes
under a second name.
"""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.logs.tail.interfaces import TailSettings
from tests.unit.logs.tail.rig import Rig


class Faulty:
    """``os.pread``, of which a share fails."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._real: Callable[[int, int, int], bytes] = os.pread
        self.share = 0.0

    def __call__(self, descriptor: int, length: int, offset: int) -> bytes:
        if self._chance.random() < self.share:
            raise OSError(5, "Input/output error")
        return self._real(descriptor, length, offset)


@pytest.mark.parametrize("seed", range(10))
def test_what_cannot_be_read_is_read_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    faulty = Faulty(chance)
    monkeypatch.setattr(os, "pread", faulty)
    rig = Rig(tmp_path, TailSettings(turn_bytes=300, line_bytes=600))
    written: list[str] = []
    for step in range(60):
        for _ in range(chance.randrange(20)):
            written.append(f"{len(written):05} {'x' * (len(written) % 50)}")
            rig.write("app.log", written[-1])
        log = rig.logs / "app.log"
        if chance.random() < 0.2 and log.exists():
            faulty.share = 0.0
            rig.look(70)  # what is rotated has been seen
            if chance.random() < 0.5:
                log.rename(rig.logs / f"app.log.{step:04}")
            else:
                (rig.logs / f"app.log.{step:04}.gz").write_bytes(gzip.compress(log.read_bytes()))
                log.unlink()
        faulty.share = chance.choice([0.0, 0.2, 1.0])
        rig.look(chance.choice([0.6, 3]))
    faulty.share = 0.0
    lines = rig.look(70)
    assert sorted(lines) == written
    assert sum(each.bytes_lost for each in rig.tail.counts().values()) == 0
    assert {each.why for each in rig.tail.status()} == {""}
    rig.tail.close()


def test_that_a_file_cannot_be_read_is_said_once_and_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(random.Random(0))
    monkeypatch.setattr(os, "pread", faulty)
    rig = Rig(tmp_path)
    rig.write("app.log", "one")
    rig.look()
    faulty.share = 1.0
    rig.write("app.log", "two")
    assert rig.look(60) == ["one"]
    (row,) = rig.tail.status()
    assert (row.state, row.why, row.lag_bytes) == ("failed", "Input/output error", 4)
    assert caplog.text.count("cannot be read: Input/output error") == 1
    faulty.share = 0.0
    assert rig.look(10) == ["one", "two"]
    (row,) = rig.tail.status()
    assert (row.state, row.why) == ("following", "")
    rig.tail.close()
