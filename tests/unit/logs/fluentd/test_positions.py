"""Fluentd's position files, and which file goes on where."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.fluentd.positions import (
    FluentdPosition,
    _is_elsewhere,
    parse_positions,
    read_positions,
    start_of,
    starts_of,
)

LATER = 1 << 62


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def start(path: Path, offset: int, written: int = LATER) -> int:
    with opened(path) as descriptor:
        return start_of(descriptor, {path.stat().st_ino: FluentdPosition(offset, written)})


def test_a_position_file_as_fluentd_writes_it() -> None:
    content = (
        b"/var/log/containers/a.log\t0000000000000010\t00000000000000ff\n"
        b"/var/log/containers/gone.log\tffffffffffffffff\t0000000000000001\n"
        b"/var/log/containers/fresh.log\t0000000000000000\t0000000000000002\n"
        b"/old/format\t0000000000000a00\t00000003\n"
    )
    assert parse_positions(content, 7) == ({255: FluentdPosition(16, 7), 3: FluentdPosition(2560, 7)}, 0)


def test_lines_that_are_none_are_counted() -> None:
    assert parse_positions(b"torn\n\n/a\tzz\t1\n/b\t1", 0) == ({}, 3)


@given(st.binary(max_size=200))
def test_no_content_does_anything_but_being_read(content: bytes) -> None:
    found, wrong = parse_positions(content, 0)
    assert len(found) + wrong <= content.count(b"\n") + content.count(b"\r") + 1


def test_a_file_of_another_file_system_with_the_same_inode_is_not_the_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    with opened(path) as descriptor:
        status = os.fstat(descriptor)
        position = FluentdPosition(8, LATER, bytes(path))
        assert start_of(descriptor, {status.st_ino: position}) == 8
        elsewhere = os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))
        assert not _is_elsewhere(bytes(path), status)
        assert _is_elsewhere(bytes(path), elsewhere)
        assert not _is_elsewhere(bytes(path) + b"\0", elsewhere)


def test_a_file_goes_on_where_fluentd_was(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    positions = tmp_path / "fluentd.pos"
    positions.write_text(f"/var/log/a.log\t{8:016x}\t{path.stat().st_ino:016x}\n")
    os.utime(positions, ns=(LATER, LATER))
    found = read_positions([positions, tmp_path / "none.pos", tmp_path])
    with opened(path) as descriptor:
        assert start_of(descriptor, found) == 8


@pytest.mark.parametrize(
    ("offset", "changed", "known", "starts"),
    [
        (8, 5, None, [8, 4, "whole"]),
        (8, 50, None, [8, 0, 0]),  # after Fluentd's last word
        (0, 5, None, [0, 0, 0]),  # Fluentd did not read this log
        (8, 5, 2, [8, 2, "whole"]),  # it has a position of the rotated one as well: it had not read it whole
    ],
)
def test_what_was_rotated_before_fluentds_last_word_was_read(
    tmp_path: Path, offset: int, changed: int, known: int | None, starts: list[int | str]
) -> None:
    contents = {"0.log": b"one\ntwo\nthree\n", "0.log.1": b"1\n2\n", "0.log.0.gz": gzip.compress(b"0\n")}
    born = time.time_ns()
    positions = {}
    with ExitStack() as stack:
        files = []
        for name, content in contents.items():
            path = tmp_path / name
            path.write_bytes(content)
            os.utime(path, ns=(born, born + changed))
            files.append(("output/u/app", stack.enter_context(opened(path))))
        written = time.time_ns() + 10**9  # births are by the kernel's clock
        os.utime(tmp_path / "0.log.1", ns=(born, written - 10 + changed))
        os.utime(tmp_path / "0.log.0.gz", ns=(born, written - 10 + changed))
        other = stack.enter_context(opened(tmp_path / "0.log.1"))
        if offset:
            positions[(tmp_path / "0.log").stat().st_ino] = FluentdPosition(offset, written)
        if known:
            positions[(tmp_path / "0.log.1").stat().st_ino] = FluentdPosition(known, written)
        found = starts_of([*files, ("output/u/other", other)], positions, {})
        size = len(contents["0.log.0.gz"])
        assert [found[each] for _, each in files] == [size if each == "whole" else each for each in starts]
        assert found[other] == (known or 0), "of another log nothing is known"


def test_what_is_put_there_after_fluentds_last_word_was_not_read_however_old_it_says_it_is(tmp_path: Path) -> None:
    """As mv, cp -p and tar do it: it was taken as read, and nobody had its lines."""
    path = tmp_path / "elsewhere"
    path.write_bytes(b"never read\n")
    os.utime(path, (1, 1))
    last_word = path.stat().st_ctime_ns
    moved = path.rename(tmp_path / "0.log.1")
    with opened(moved) as descriptor:
        positions = {moved.stat().st_ino + 1: FluentdPosition(4, last_word)}
        assert starts_of([("output/u/app", descriptor)], positions, {"output/u/app": last_word}) == {descriptor: 0}


def test_what_is_in_doubt_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert start(path, 8) == 8
    assert start(path, 9) == 0, "no line ends there"
    assert start(path, 80) == 0, "it is shorter"
    assert start(path, 8, written=1) == 0, "it was made after Fluentd's last word: the inode was given again"
    with opened(path) as descriptor:
        assert start_of(descriptor, {}) == 0


def test_a_fifo_that_a_pod_left_there_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pos")
    (tmp_path / "folder").mkdir()
    assert read_positions([tmp_path / "pos", tmp_path / "folder"]) == {}
    assert caplog.text.count("cannot be read") == 2
