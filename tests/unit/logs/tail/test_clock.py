"""The node's clock is set back by a day: files that are made then are born before those that they follow."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from nodeagent.logs.tail import files
from tests.unit.logs.tail.rig import Rig

DAY = 86_400 * 10**9


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_missing_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """By every rotation, and by a restart that remembers nothing since the last look."""
    chance = random.Random(seed)
    births: dict[int, int] = {}
    clock = 10 * DAY

    def born(descriptor: int) -> int:
        return births.setdefault(os.fstat(descriptor).st_ino, clock)

    monkeypatch.setattr(files, "birth_of", born)
    rig = Rig(tmp_path)
    log = rig.logs / "app.log"
    for number in range(40):
        clock += 10**9 if number != 20 else -DAY
        rig.write("app.log", *(f"{number:02} {each} {'x' * 90}" for each in range(chance.randrange(1, 60))))
        written = (rig.logs / f"app.log.{number}") if chance.random() < 0.4 else None
        if chance.random() < 0.7:
            rig.look()
        if written is not None and chance.random() < 0.5:
            shutil.copyfile(log, written)
            if chance.random() < 0.5:
                rig.scan()
            os.truncate(log, 0)
        elif written is not None:
            log.rename(written)
        if chance.random() < 0.2:
            rig.restart(save=chance.random() < 0.5)
    rig.look(seconds=120)
    found = set(rig.sink.texts())
    rest = [each.read_text().splitlines() for each in rig.logs.iterdir()]
    assert {line for lines in rest for line in lines} <= found
    rig.tail.close()
