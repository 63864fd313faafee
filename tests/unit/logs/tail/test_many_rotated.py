"""Many rotated files at once, as there are after a restart: however long it takes to tell what each of them is, all
of them are read.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nodeagent.logs.tail import twins
from nodeagent.logs.tail.tail import AGE_SECONDS
from tests.unit.logs.tail.rig import Rig

FILES = 24
PIECES = 8
"""A file is read in so many."""


@pytest.mark.parametrize("step", [twins.STEP, 64])
def test_what_is_compared_for_long_keeps_nothing_else_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Compressed files wait for one that was not read yet, whose turn is behind theirs. Each turn takes as long as
    after which what is unknown is compared again. *step*: of a comparison, in bytes.
    """
    monkeypatch.setattr(twins, "STEP", step)
    rig = Rig(tmp_path)
    written: list[str] = []

    def write(name: str, file: int) -> None:
        lines = [f"{len(written) + each:06} {'x' * file}" for each in range(5)]
        written.extend(lines)
        rig.write(name, *lines)

    for file in range(FILES):
        for _ in range(PIECES):
            write("app.log", file)
            rig.look()
        (rig.logs / "app.log").rename(rig.logs / f"app.log.{file:03}")
    rig.hold = True  # it is read again
    write("app.log", FILES)
    rig.look()
    rig.restart()
    rig.hold = False
    for file in range(FILES):
        plain = rig.logs / f"app.log.{file:03}"
        Path(f"{plain}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    write("app.log", FILES)
    rig.scan()
    for _ in range(4000):
        rig.now += AGE_SECONDS
        rig.turn()
        if len(rig.sink.order) == len(written):
            break
    assert set(rig.sink.texts()) == set(written)
    rig.tail.close()
