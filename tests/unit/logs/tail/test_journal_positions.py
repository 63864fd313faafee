"""Files of systemd's journal are followed as any other: over rotation, restarts and removal, each entry once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.logs.tail.interfaces import LogSource, SourceKey
from nodeagent.vocabulary import PodUid
from tests.unit.logs.journal_files import JournalWriter, written
from tests.unit.logs.tail.rig import Rig

SOURCE = LogSource(SourceKey("journal//var/log/journal/system.journal"), PodUid(""), journal=True)
NAME = "system.journal"
ROTATED = "system@0123456789abcdef0123456789abcdef-0000000000000001-0000000000000001.journal"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.tail.close()


def messages(rig: Rig) -> list[str]:
    return [json.loads(each)["MESSAGE"] for each in rig.sink.texts()]


def entries(begin: int, end: int) -> Iterator[dict[str, bytes]]:
    return ({"MESSAGE": f"{number}".encode(), "PRIORITY": b"6"} for number in range(begin, end))


def numbers(end: int) -> list[str]:
    return [f"{number}" for number in range(end)]


def look(rig: Rig, seconds: float = 1.0) -> list[str]:
    rig.scan(SOURCE)
    rig.run(seconds)
    return messages(rig)


def test_a_journal_is_read_on_where_it_was_before_a_restart(rig: Rig) -> None:
    path = written(rig.logs / NAME, entries(0, 500))
    assert look(rig) == numbers(500)
    rig.restart()
    written(path, entries(500, 600), 500)
    assert look(rig) == numbers(600)
    assert not rig.sink.repeated
    assert len({chunk.file for chunk in rig.sink.chunks}) == 1


def test_what_was_not_settled_comes_again_under_its_name(rig: Rig) -> None:
    path = written(rig.logs / NAME, entries(0, 500))
    assert look(rig) == numbers(500)
    rig.hold = True
    written(path, entries(500, 600), 500)
    assert look(rig) == numbers(600)
    rig.restart()
    rig.hold = False
    assert look(rig) == numbers(600)
    assert rig.sink.repeated == 100
    assert len({chunk.file for chunk in rig.sink.chunks}) == 1


def test_a_journal_whose_positions_were_lost_has_the_same_names(rig: Rig) -> None:
    written(rig.logs / NAME, entries(0, 500))
    look(rig)
    rig.tail.close()
    for each in rig.state.iterdir():
        each.unlink()
    rig.restart(save=False)
    assert look(rig) == numbers(500)
    assert rig.sink.repeated == 500


def test_a_rotated_journal_is_read_to_its_end_and_never_again(rig: Rig) -> None:
    path = written(rig.logs / NAME, entries(0, 500))
    look(rig)
    written(path, entries(500, 600), 500)
    path.rename(rig.logs / ROTATED)
    written(path, entries(600, 700), 600)
    assert look(rig, 3.0) == numbers(700)
    states = {status.name: (status.state, status.lag_bytes) for status in rig.tail.status()}
    assert states == {NAME: ("following", 0), ROTATED: ("done", 0)}
    rig.restart()
    assert look(rig) == numbers(700)
    assert not rig.sink.repeated
    assert {status.name: status.read for status in rig.tail.status()}[ROTATED] == 0, "it was not even read"


def test_a_journal_that_is_vacuumed_while_it_is_read_is_read_to_its_end(rig: Rig) -> None:
    path = written(rig.logs / NAME, entries(0, 500))
    rig.room = False
    look(rig)
    path.unlink()
    rig.run(60.0)
    lag = [status.lag_bytes for status in rig.tail.status()]
    assert lag[0] > 0
    rig.room = True
    rig.tail.wake()
    rig.run(60.0)
    assert messages(rig) == numbers(500)
    assert not list(rig.tail.status())
    assert not rig.tail.counts()[PodUid("")].bytes_lost


def test_an_entry_is_seen_though_the_file_keeps_its_size(rig: Rig) -> None:
    path = rig.logs / NAME
    with JournalWriter(path) as writer:
        writer.write(entries(0, 1))
    size = path.stat().st_size
    assert look(rig) == numbers(1)
    for count in range(2, 10):
        times = path.stat()
        written(path, entries(count - 1, count), count - 1)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        rig.run(3.0)
        assert messages(rig) == numbers(count)
    assert path.stat().st_size == size


def test_a_journal_that_is_damaged_is_said_by_name_and_what_is_lost_is_counted(rig: Rig) -> None:
    path = written(rig.logs / NAME, entries(0, 500))
    data = bytearray(path.read_bytes())
    array = int.from_bytes(data[176:184], "little")
    data[array + 16 : array + 24] = (12345).to_bytes(8, "little")
    path.write_bytes(data)
    found = look(rig)
    assert found == numbers(len(found)) != []
    status = next(iter(rig.tail.status()))
    assert (status.state, status.name) == ("failed", NAME)
    assert "in no array of entries" in status.why
    assert rig.tail.counts()[PodUid("")].bytes_lost > 0
