"""Files of systemd's journal: read as journalctl shows them, whoever compressed what, and whatever is broken."""

from __future__ import annotations

import ctypes
import json
import lzma
import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.tail import journal_values
from nodeagent.logs.tail.journal_file import INCOMPLETE, LINE_BYTES, JournalContent
from nodeagent.logs.tail.unpacked import CompressedError
from tests.unit.logs.journal_files import Entry, JournalWriter, shown, written
from tests.waiting import eventually

CHANCE = random.Random(4)
PIECE = 100_000
ENTRIES: tuple[Entry, ...] = (
    {"MESSAGE": b"hello", "PRIORITY": b"6", "_SYSTEMD_UNIT": b"a.service"},
    {"MESSAGE": b'two\nlines and a "quote" \\ \x1b[1m', "PRIORITY": b"3"},
    {"MESSAGE": "\u00e9\u4e16".encode(), "BINARY": bytes(range(256)), "EMPTY": b""},
    {"MESSAGE": b"a trace\n" * 300, "_SYSTEMD_UNIT": b"b.service"},  # which is compressed
    {"MESSAGE": CHANCE.randbytes(2000)},
    *({"MESSAGE": f"{number}".encode(), "_SYSTEMD_UNIT": b"a.service"} for number in range(60)),
)


def text_of(path: Path) -> bytes:
    """Return all that can be read of the journal file *path*. Raise CompressedError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(pieces(JournalContent(descriptor, lambda: False)))
    finally:
        os.close(descriptor)


def pieces(content: JournalContent) -> Iterator[bytes]:
    at = 0
    while piece := content.read(at, PIECE):
        at += len(piece)
        yield piece


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in text_of(path).splitlines()]


@pytest.mark.parametrize("compact", ["0", "1"])
@pytest.mark.parametrize("keyed", ["0", "1"])
def test_entries_are_what_journalctl_shows(tmp_path: Path, compact: str, keyed: str) -> None:
    switches = {"SYSTEMD_JOURNAL_COMPACT": compact, "SYSTEMD_JOURNAL_KEYED_HASH": keyed}
    path = written(tmp_path / "system.journal", ENTRIES, **switches)
    found = read(path)
    assert found == shown(path)
    assert [each["MESSAGE"] for each in found] == [each["MESSAGE"].decode("utf-8", "replace") for each in ENTRIES]


def test_what_is_written_while_it_is_read_follows(tmp_path: Path) -> None:
    path = tmp_path / "system.journal"
    descriptor = -1
    text = b""
    with JournalWriter(path) as writer:
        for round_ in range(20):
            writer.write({"MESSAGE": f"{round_} {number}".encode()} for number in range(50))
            eventually(path.exists, "the file is there")
            if descriptor < 0:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                content = JournalContent(descriptor, lambda: False)
            text += content.read(len(text), 1 << 20)
        eventually(lambda: content.read(0, 1 << 22).count(b"\n") == writer.number, "all is read")
    before = content.read(0, 1 << 22)
    assert before.startswith(text)
    os.close(descriptor)
    assert before == text_of(path)
    assert [json.loads(line) for line in before.splitlines()] == shown(path)


def test_a_file_that_is_being_made_holds_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "system.journal"
    path.touch()
    assert not text_of(path)


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "system.journal"
    path.write_bytes(b"hello\n" * 100)
    with pytest.raises(CompressedError, match="no file of systemd's journal"):
        text_of(path)


def test_a_file_of_a_later_systemd_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "system.journal", ENTRIES[:1])
    with open(path, "r+b") as file:
        file.seek(12)
        file.write(struct.pack("<I", 0x100))
    with pytest.raises(CompressedError, match=r"later systemd.*0x100"):
        text_of(path)


@pytest.mark.parametrize("size", [1_000_000, 1_500_000])
@pytest.mark.parametrize("text", [b"0123456789", b'"', b"\\", "\u4e16".encode(), b"\0", b"\xff"])
def test_a_value_that_is_too_long_is_cut_and_all_else_is_there(tmp_path: Path, size: int, text: bytes) -> None:
    long = text * (size // len(text))
    entries = [{"MESSAGE": long, "Z": b"last", "PRIORITY": b"3"}, {"MESSAGE": b"after"}]
    path = written(tmp_path / "system.journal", entries)
    lines = text_of(path).splitlines(keepends=True)
    assert all(len(line) <= LINE_BYTES for line in lines)
    first, after = map(json.loads, lines)
    wanted = shown(path)[0]
    if len(json.dumps(wanted, ensure_ascii=False).encode()) < LINE_BYTES - 2000:
        assert first == wanted
    else:
        assert wanted["MESSAGE"].startswith(first["MESSAGE"])
        assert len(lines[0]) > LINE_BYTES - 2000
        assert first[INCOMPLETE] == "MESSAGE: cut, for the entry is too long"
    assert {**first, "MESSAGE": "", INCOMPLETE: ""} == {**wanted, "MESSAGE": "", INCOMPLETE: ""}
    assert after["MESSAGE"] == "after"


@pytest.mark.parametrize("text", [b'"', b"\\", "\u4e16".encode(), b"\0"])
def test_a_value_is_cut_between_characters_wherever_that_is(tmp_path: Path, text: bytes) -> None:
    entries = [{"MESSAGE": b"x" * more + text * (1_100_000 // len(text))} for more in range(6)]
    path = written(tmp_path / "system.journal", entries)
    for more, line in enumerate(text_of(path).splitlines()):
        message = json.loads(line)["MESSAGE"].encode()
        assert message == (b"x" * more + text * len(message))[: len(message)]


def test_an_entry_of_many_long_values_is_bounded(tmp_path: Path) -> None:
    entry = {f"F{number}": bytes([65 + number % 26]) * 100_000 for number in range(200)}
    path = written(tmp_path / "system.journal", [{**entry, "PRIORITY": b"3"}, {"MESSAGE": b"after"}])
    lines = text_of(path).splitlines(keepends=True)
    assert len(lines[0]) <= LINE_BYTES
    first = json.loads(lines[0])
    assert (first["F0"], first["PRIORITY"]) == ("A" * 100_000, "3")
    assert "F199: left out" in first[INCOMPLETE] or len(first[INCOMPLETE]) > 500
    assert json.loads(lines[1])["MESSAGE"] == "after"


# -- compressed in other ways: a value of a file is replaced by what another journald would have written --


def xz(value: bytes) -> bytes:
    return lzma.compress(value, check=lzma.CHECK_NONE)


def lz4(value: bytes) -> bytes:
    library = ctypes.CDLL("liblz4.so.1")
    made = ctypes.create_string_buffer(library.LZ4_compressBound(len(value)))
    count = library.LZ4_compress_default(value, made, len(value), len(made))
    return struct.pack("<Q", len(value)) + made.raw[:count]


def packed_again(path: Path, value: bytes, flag: int, packed: bytes) -> None:
    """Have the data object with *value* hold *packed*, which is not longer, with that *flag*."""
    data = bytearray(path.read_bytes())
    at = data.index(value)
    head = at - (72 if struct.unpack_from("<I", data, 12)[0] & 0x10 else 64)
    assert data[head] == 1 and len(packed) <= len(value)
    data[at : at + len(packed)] = packed
    data[head + 1] = flag
    data[head + 8 : head + 16] = struct.pack("<Q", at - head + len(packed))
    path.write_bytes(data)


@pytest.mark.parametrize(("flag", "pack"), [(journal_values.XZ, xz), (journal_values.LZ4, lz4)])
def test_what_others_compressed_is_read(tmp_path: Path, flag: int, pack: Callable[[bytes], bytes]) -> None:
    value = b"MESSAGE=" + b"la " * 160
    path = written(tmp_path / "system.journal", [{"MESSAGE": value[8:], "PRIORITY": b"3"}, {"MESSAGE": b"after"}])
    packed_again(path, value, flag, pack(value))
    assert read(path) == shown(path)
    assert read(path)[0]["MESSAGE"] == value[8:].decode()


@pytest.mark.parametrize("flag", [journal_values.XZ, journal_values.LZ4, journal_values.ZSTD, 7])
def test_a_value_that_cannot_be_decompressed_is_said_and_all_else_is_there(tmp_path: Path, flag: int) -> None:
    value = b"MESSAGE=" + b"la " * 160
    path = written(tmp_path / "system.journal", [{"MESSAGE": value[8:], "PRIORITY": b"3"}, {"MESSAGE": b"after"}])
    packed_again(path, value, flag, CHANCE.randbytes(100))
    first, after = read(path)
    assert "MESSAGE" not in first
    assert first["PRIORITY"] == "3"
    assert "damaged" in first[INCOMPLETE] or "not known" in first[INCOMPLETE]
    assert after["MESSAGE"] == "after"


def test_a_library_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "system.journal", [{"MESSAGE": b"a trace\n" * 300, "PRIORITY": b"3"}])
    monkeypatch.setattr(journal_values, "ZSTD_LIBRARY", "libnone.so.1")
    journal_values._zstd_library.cache_clear()
    try:
        assert "compressed, and libnone.so.1 is not there" in read(path)[0][INCOMPLETE]
    finally:
        journal_values._zstd_library.cache_clear()


# -- broken files --


@cache
def a_file(folder: Path, compact: str) -> tuple[bytes, list[int]]:
    """Return a file, and places in it where something stands that leads to others: header, arrays, entries, data."""
    path = written(folder / f"whole{compact}.journal", ENTRIES, SYSTEMD_JOURNAL_COMPACT=compact)
    data = path.read_bytes()
    telling = list(range(88, 184))
    at = header_size = struct.unpack_from("<Q", data, 88)[0]
    while at < struct.unpack_from("<Q", data, 136)[0]:
        kind, size = struct.unpack_from("<B7xQ", data, at)
        if kind in (1, 3, 6):
            telling += range(at, at + min(size, 120))
        at += (size + 7) & ~7
    assert at > header_size
    return data, telling


broken = st.lists(st.tuples(st.integers(0, 1 << 32), st.one_of(st.sampled_from((0, 1, 127, 255)), st.integers(0, 255))))


@pytest.mark.parametrize("compact", ["0", "1"])
@given(flips=broken, length=st.floats(0.5, 1) | st.floats(0, 1))
def test_whatever_is_broken_reading_ends_and_each_line_is_an_object(
    tmp_path_factory: pytest.TempPathFactory, compact: str, flips: list[tuple[int, int]], length: float
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole, telling = a_file(folder, compact)
    data = bytearray(whole)
    for place, value in flips:
        data[telling[place % len(telling)]] = value
    path = folder / "broken.journal"
    path.write_bytes(data[: int(length * 2 * telling[-1])])
    text = b""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = JournalContent(descriptor, lambda: False)
        while piece := content.read(len(text), PIECE):
            text += piece
            assert len(text) < 100 * telling[-1]
    except CompressedError:
        pass
    finally:
        os.close(descriptor)
    for line in text.splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("place", [1 << 63, (1 << 62) + 8, 8, 0])
def test_an_entry_is_nowhere_but_behind_the_one_before(tmp_path: Path, place: int) -> None:
    path = written(tmp_path / "system.journal", ENTRIES, SYSTEMD_JOURNAL_COMPACT="0")
    data = bytearray(path.read_bytes())
    array = struct.unpack_from("<Q", data, 176)[0]
    struct.pack_into("<Q", data, array + 24 + 8, place or struct.unpack_from("<Q", data, array + 24)[0])
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    content = JournalContent(descriptor, lambda: False)
    assert content.read(0, PIECE).count(b"\n") == 1
    with pytest.raises(CompressedError, match="entry 1 cannot be at byte"):
        content.read(0, PIECE)
    os.close(descriptor)


def test_what_stands_before_a_broken_place_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "system.journal", ENTRIES)
    data = bytearray(path.read_bytes())
    array = struct.unpack_from("<Q", data, 176)[0]
    struct.pack_into("<Q", data, array + 16, 12345)
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    content = JournalContent(descriptor, lambda: False)
    found = content.read(0, 1 << 20)
    assert found.count(b"\n") < len(ENTRIES)
    assert json.loads(found.splitlines()[0])["MESSAGE"] == "hello"
    with pytest.raises(CompressedError, match="no array of entries"):
        content.read(max(len(found) - 1024, 0), 1 << 20)
    os.close(descriptor)
