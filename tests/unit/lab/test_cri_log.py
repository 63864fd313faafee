"""What a container writes, as lines of the runtime, in files as the kubelet rotates them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.lab import cri_log

AT = 1_700_000_000_120_000_000
PREFIX = b"2023-11-14T22:13:20.12Z stdout F "


def test_a_line_is_as_the_runtime_writes_it() -> None:
    assert cri_log.encode(b"stdout", b"one\n\ntwo\n", AT) == b"".join(
        PREFIX + line for line in (b"one\n", b"\n", b"two\n")
    )
    assert cri_log.encode(b"stderr", b"x\n", 1_700_000_000_000_000_000) == b"2023-11-14T22:13:20Z stderr F x\n"


def test_a_long_line_comes_in_parts() -> None:
    line = b"a" * (2 * cri_log.LINE_BYTES) + b"b\n"
    written = cri_log.encode(b"stdout", line + b"short\n", AT).splitlines()
    assert [each.split(b" ")[2] for each in written] == [b"P", b"P", b"F", b"F"]
    assert max(map(len, written)) == len(PREFIX) + cri_log.LINE_BYTES


@given(st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b" ").replace(b"\r", b" "))))
def test_what_was_written_is_read(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert b"".join(cri_log.decode(cri_log.encode(b"stdout", line + b"\n", AT)) for line in lines) == data


def write(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(cri_log.encode(b"stdout", text.encode(), AT))


def read(reader: cri_log.LogReader) -> str:
    return cri_log.decode(b"".join(reader.read())).decode()


def test_rotation_keeps_five_files_and_all_but_the_newest_rotated_are_compressed(tmp_path: Path) -> None:
    path = cri_log.next_file(tmp_path / "web")
    for number in range(8):
        write(path, f"line {number}\n")
        for each in cri_log.rotate(path, 1_700_000_000 + number):
            cri_log.compress(each)
        path.touch()
    names = [each.name for each in cri_log.files(path.parent)]
    assert names == [
        "0.log.20231114-221324.gz",
        "0.log.20231114-221325.gz",
        "0.log.20231114-221326.gz",
        "0.log.20231114-221327",
        "0.log",
    ]
    assert b"line 4" in gzip.decompress((path.parent / names[0]).read_bytes())
    assert cri_log.text(path.parent) == "line 4\nline 5\nline 6\nline 7\n"
    assert cri_log.tail(path.parent, 1) == "line 7"


def test_a_second_rotation_within_one_second_does_not_happen(tmp_path: Path) -> None:
    path = cri_log.next_file(tmp_path)
    write(path, "one\n")
    cri_log.rotate(path, 1)
    write(path, "two\n")
    assert cri_log.rotate(path, 1) == []
    assert cri_log.text(tmp_path) == "one\ntwo\n"


def test_starts_of_a_container_have_files_of_their_own(tmp_path: Path) -> None:
    for number in range(12):
        path = cri_log.next_file(tmp_path)
        assert path.name == f"{number}.log"
        write(path, f"start {number}\n")
    assert cri_log.text(tmp_path) == "".join(f"start {number}\n" for number in range(7, 12))


def test_it_is_followed_over_rotation_and_restart(tmp_path: Path) -> None:
    path = cri_log.next_file(tmp_path)
    reader = cri_log.LogReader(tmp_path)
    try:
        write(path, "one\n")
        assert read(reader) == "one\n"
        write(path, "two\n")
        cri_log.rotate(path, 1)
        write(path, "three\n")
        assert read(reader) == "two\nthree\n"
        with path.open("ab") as file:
            file.write(PREFIX + b"not ye")
        assert read(reader) == ""
        with path.open("ab") as file:
            file.write(b"t\n")
        write(cri_log.next_file(tmp_path), "again\n")
        assert read(reader) == "not yet\nagain\n"
    finally:
        reader.close()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0.log.20231114-221324"
    path.write_text("x")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    cri_log.compress(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
