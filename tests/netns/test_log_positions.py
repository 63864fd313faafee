"""Positions on a disk that is full, and on one that is mounted read-only: real file systems, each its own."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.logs.tail.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", state], check=True)
    made = Rig(tmp_path)
    try:
        yield made
    finally:
        made.tail.close()
        subprocess.run(["umount", state], check=True)


def test_a_full_disk_stops_no_reading_and_spoils_no_position(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rig.write("app.log", "one")
    rig.look()
    assert rig.tail.save()
    with pytest.raises(OSError, match="No space left"):
        (rig.state / "filler").write_bytes(bytes(128 << 10))
    rig.write("app.log", "two")
    assert rig.look() == ["one", "two"]
    assert not rig.tail.save()
    assert "No space left" in rig.tail.problem
    rig.restart(save=False)
    rig.look()
    assert rig.sink.repeated == 1, "the last positions that were whole are still there"
    (rig.state / "filler").unlink()
    assert rig.tail.save()
    assert "No space left" in caplog.text


def test_a_read_only_folder_stops_no_reading(rig: Rig) -> None:
    subprocess.run(["mount", "-o", "remount,ro", rig.state], check=True)
    rig.write("app.log", "one")
    assert rig.look() == ["one"]
    assert not rig.tail.save()
    assert "Read-only file system" in rig.tail.problem
    subprocess.run(["mount", "-o", "remount,rw", rig.state], check=True)
    assert rig.tail.save()
    rig.restart(save=False)
    rig.look()
    assert rig.sink.repeated == 0
