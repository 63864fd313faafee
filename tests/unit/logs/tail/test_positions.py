"""The positions file: what is written is read; what is wrong is put aside; what cannot be written is said."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

from nodeagent.logs.tail.coverage import Coverage, Mark
from nodeagent.logs.tail.identity import Inode
from nodeagent.logs.tail.positions import (
    FILE,
    REFUSED,
    PositionEntry,
    PositionsError,
    PositionsFile,
    decoded,
    done_entry,
    encoded,
)
from tests.unit.logs.tail.rig import Rig

ENTRY = PositionEntry(
    source="uid/app",
    device=1,
    inode=2,
    birth=3,
    name="app.log",
    id="ab",
    truncated=1,
    begin=0,
    offset=10,
    checksum=7,
    tail=b"\xff\0",
    cuts=(12,),
    done=-1,
    gone=True,
    overwritten=True,
    marks=((20, 8, b"c"), (30, 9, b"d")),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    entries = [ENTRY, done_entry("uid/app", Inode(1, 5, 6), "app.log.gz", 99)]
    assert PositionsFile(tmp_path).write(entries)
    assert PositionsFile(tmp_path).read() == entries
    assert os.listdir(tmp_path) == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_what_another_release_wrote_is_read() -> None:
    """One that knew no marks, and one that knows more than this one."""
    values = msgspec.structs.astuple(ENTRY)
    rest = msgspec.msgpack.encode([values[:-2], (*values, "more")])
    before, after = decoded(in_a_file(rest))
    assert before == msgspec.structs.replace(ENTRY, marks=())
    assert after == ENTRY


def in_a_file(rest: bytes) -> bytes:
    """Return *rest*, the encoded entries, with the first line of a positions file."""
    return b"nodeagent-log-positions 1 %s\n%s" % (blake2b(rest, digest_size=16).hexdigest().encode(), rest)


def test_no_file_is_no_entry(tmp_path: Path) -> None:
    assert PositionsFile(tmp_path).read() == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin"),
        (b"pos\t0000\t0000\n", "does not begin"),
        (encoded([ENTRY])[:-1], "checksum"),
        (encoded([ENTRY]) + b"x", "checksum"),
        (encoded([ENTRY]).replace(b"positions 1 ", b"positions 2 "), "version is 2"),
        (encoded([ENTRY])[:20], "does not begin"),
    ],
)
def test_a_wrong_file_is_put_aside_and_named(
    tmp_path: Path, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PositionsError, match=why):
        decoded(content)
    (tmp_path / FILE).write_bytes(content)
    assert PositionsFile(tmp_path).read() == []
    assert (tmp_path / REFUSED).read_bytes() == content
    assert why in caplog.text and str(tmp_path / REFUSED) in caplog.text


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(encoded([ENTRY]))
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    assert PositionsFile(tmp_path).read() == []


def test_one_that_cannot_be_read_now_is_kept_for_whoever_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    PositionsFile(tmp_path).write([ENTRY])

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        assert PositionsFile(tmp_path).read() == []
    assert decoded((tmp_path / REFUSED).read_bytes()) == [ENTRY]
    assert "Input/output error" in caplog.text and REFUSED in caplog.text


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.tail.close()


def test_goes_on_while_positions_cannot_be_written(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A folder in the file's way stands for a read-only file system: neither lets root write."""
    (rig.state / f"{FILE}.new").mkdir()
    caplog.set_level(logging.WARNING)
    rig.write("app.log", "one")
    rig.look()
    assert not rig.tail.save()
    assert not rig.tail.save()
    assert str(rig.state / FILE) in rig.tail.problem
    assert caplog.text.count("cannot be written") == 1
    os.truncate(rig.logs / "app.log", 0)
    rig.run()
    rig.write("app.log", "two")
    assert rig.look() == ["one", "two"]
    (rig.state / f"{FILE}.new").rmdir()
    assert rig.tail.save()
    assert not rig.tail.problem
    assert "are written again" in caplog.text
    rig.restart(save=False)
    rig.look()
    assert rig.sink.repeated == 0


def test_contents_that_begin_alike_are_told_apart_after_a_restart_too_where_positions_could_not_be_written(
    rig: Rig,
) -> None:
    """A file that is truncated in place, and begins with the same line each time: what came from it has no id twice."""
    rig.write("app.log", "# fields", "1")
    rig.look()
    assert rig.tail.save()
    (rig.state / f"{FILE}.new").mkdir()
    for number in range(2, 8):
        os.truncate(rig.logs / "app.log", 0)
        rig.write("app.log", "# fields", f"{number}")
        rig.look()
        if number % 2:
            rig.restart(save=False)
    (rig.state / f"{FILE}.new").rmdir()
    rig.restart(save=False)
    rig.look()
    os.truncate(rig.logs / "app.log", 0)
    rig.write("app.log", "# fields", "8")
    assert set(rig.look()) == {"# fields", *(f"{number}" for number in range(1, 9))}


def test_a_line_without_an_end_waits_while_positions_cannot_be_written(rig: Rig) -> None:
    (rig.state / f"{FILE}.new").mkdir()
    rig.write("app.log", "torn", end="")
    rig.look()
    rig.tail.changed()
    rig.tail.save()
    assert rig.look(rig.settings.partial_seconds + 5) == []
    (rig.state / f"{FILE}.new").rmdir()
    rig.tail.save()
    assert rig.look(5) == ["torn"]


def test_a_stretch_is_settled_in_order() -> None:
    moved: list[int] = []
    start = Mark(0, 0, b"")
    coverage = Coverage(start, lambda: moved.append(1))
    coverage.begin_chunk()
    first = coverage.stretch(5)
    second = coverage.stretch(10)
    marks = {5: Mark(5, 1, b"a"), 10: Mark(10, 2, b"b")}
    coverage.end_chunk(marks, marks[10])
    second()
    assert (coverage.settled, coverage.mark) == (0, start)
    first()
    assert (coverage.settled, coverage.mark) == (10, marks[10])
    assert moved == [1]
    assert not coverage.under_way


def test_a_stretch_that_is_settled_as_it_is_taken_has_its_mark() -> None:
    coverage = Coverage(Mark(0, 0, b""), lambda: None)
    coverage.begin_chunk()
    coverage.stretch(5)()
    mark = Mark(5, 1, b"a")
    coverage.end_chunk({5: mark}, Mark(8, 2, b"b"))
    assert coverage.mark == mark


def test_a_stretch_whose_place_cannot_be_recognized_is_no_position() -> None:
    """Lines of one stream go on being held while another's are flushed: it ends in an earlier chunk."""
    coverage = Coverage(Mark(0, 0, b""), lambda: None)
    coverage.begin_chunk()
    coverage.end_chunk({}, Mark(8, 1, b"a"))
    coverage.stretch(3)()
    assert (coverage.settled, coverage.mark.offset) == (3, 0)
    coverage.stretch(8)()
    assert (coverage.settled, coverage.mark.offset) == (8, 8)
