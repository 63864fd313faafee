"""Every way in which files are rotated, against real files: nothing missing, nothing under a wrong name."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nodeagent.logs.tail import compressed, files
from nodeagent.logs.tail.interfaces import LogSource, SourceKey, TailSettings
from nodeagent.logs.tail.positions import PositionsFile
from nodeagent.logs.tail.tail import TURNS
from nodeagent.vocabulary import PodUid
from tests.unit.logs.tail.rig import SOURCE, Rig, Sink


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.tail.close()


def numbered(begin: int, end: int) -> list[str]:
    return [f"line {number:06d} of this test" for number in range(begin, end)]


def compress(rig: Rig, name: str) -> None:
    """As the kubelet and logrotate do: beside, then renamed, then the original removed."""
    (rig.logs / f"{name}.gz.tmp").write_bytes(gzip.compress((rig.logs / name).read_bytes()))
    os.rename(rig.logs / f"{name}.gz.tmp", rig.logs / f"{name}.gz")
    (rig.logs / name).unlink()


def truncate_into(rig: Rig, name: str, copy: str) -> None:
    shutil.copyfile(rig.logs / name, rig.logs / copy)
    os.truncate(rig.logs / name, 0)


def test_lines_come_as_they_are_written(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    assert rig.look() == numbered(0, 3)
    rig.write("app.log", *numbered(3, 5))
    assert rig.look() == numbered(0, 5)
    assert rig.sink.repeated == 0


def test_a_line_is_whole_before_it_comes(rig: Rig) -> None:
    rig.write("app.log", "begun ", end="")
    assert rig.look() == []
    rig.write("app.log", "and ended")
    assert rig.look() == ["begun and ended"]


def test_goes_on_where_it_was_after_a_restart(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    rig.restart()
    rig.write("app.log", *numbered(3, 5))
    assert rig.look() == numbered(0, 5)
    assert rig.sink.repeated == 0


def test_the_same_ids_come_again_where_no_position_was_saved(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    rig.restart(save=False)
    assert rig.look() == numbered(0, 3)
    assert rig.sink.repeated == 3


def test_a_renamed_file_is_read_to_its_end_before_the_next(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    rig.write("app.log", *numbered(3, 6))
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.write("app.log", *numbered(6, 9))
    assert rig.look() == numbered(0, 9)
    with open(rig.logs / "app.log.1", "a") as late:
        late.write("late\n")
    assert rig.look() == [*numbered(0, 9), "late"]


def test_several_rotations_while_down(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    rig.restart()
    rig.write("app.log", *numbered(3, 4))
    for number in range(4, 7):
        for old in (3, 2, 1):
            if (rig.logs / f"app.log.{old}").exists():
                os.rename(rig.logs / f"app.log.{old}", rig.logs / f"app.log.{old + 1}")
        os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
        rig.write("app.log", *numbered(number, number + 1))
    assert rig.look() == numbered(0, 7)
    assert rig.sink.repeated == 0


def test_a_removed_file_is_read_to_its_end_and_closed(rig: Rig) -> None:
    rig.room = False
    rig.write("app.log", *numbered(0, 1000))
    rig.look()
    (rig.logs / "app.log").unlink()
    rig.run(20)
    assert rig.sink.texts() == []
    rig.room = True
    rig.run(10)
    assert rig.sink.texts() == numbered(0, 1000)
    assert list(rig.tail.status()) == []


def test_a_removed_file_that_nobody_takes_is_given_up(rig: Rig) -> None:
    rig.room = False
    rig.write("app.log", *numbered(0, 10))
    size = (rig.logs / "app.log").stat().st_size
    rig.look()
    (rig.logs / "app.log").unlink()
    rig.run(rig.settings.removed_seconds + 10)
    assert list(rig.tail.status()) == []
    assert sum(each.bytes_lost for each in rig.tail.counts().values()) == size


def test_removed_files_do_not_fill_the_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TailSettings(removed_bytes=150_000))
    rig.room = False
    for name in "abc":
        rig.write(name, "x" * 65_000)
        rig.scan(LogSource(SourceKey(name), PodUid("uid")))
        (rig.logs / name).unlink()
        rig.run()
    assert [each.name for each in rig.tail.status()] == ["b", "c"]
    rig.tail.close()


def test_the_pod_that_fills_the_disk_with_removed_files_loses_them_and_no_other(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TailSettings(removed_bytes=150_000))
    rig.room = False

    def removed(name: str, uid: str, size: int, holes: int = 0) -> None:
        rig.write(name, "x" * size)
        if holes:
            os.truncate(rig.logs / name, holes)
        rig.scan(LogSource(SourceKey(name), PodUid(uid)))
        (rig.logs / name).unlink()
        rig.run()

    removed("innocent", "u1", 30_000)
    removed("hollow", "u2", 30_000, holes=1 << 40)
    assert {each.name for each in rig.tail.status()} == {"innocent", "hollow"}, "a hole takes nothing of the disk"
    for name in "abc":
        removed(name, "u3", 65_000)
    assert [each.name for each in rig.tail.status()] == ["innocent", "hollow", "c"]
    rig.tail.close()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"") * 2000,
        gzip.compress(b"x") * 2000,
        gzip.compress(b"\n".join(os.urandom(32).hex().encode() for _ in range(20_000))) + gzip.compress(b"") * 1000,
        gzip.compress(bytes(20 << 20)),
    ],
    ids=["members of nothing", "members of a byte each", "nothing behind much", "a thousand times its size"],
)
def test_a_compressed_file_that_is_made_to_be_read_for_ever_fails_and_others_go_on(
    rig: Rig, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "FREE_BYTES", 1 << 20)
    (rig.logs / "app.log.1.gz").write_bytes(content)
    rig.write("app.log", "one")
    rig.look(10)
    assert {each.name: each.state for each in rig.tail.status()}["app.log.1.gz"] == "failed"
    assert "one" in rig.sink.texts()


def test_copied_and_truncated(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    rig.write("app.log", *numbered(5, 8))
    truncate_into(rig, "app.log", "app.log.1")
    rig.write("app.log", *numbered(8, 9))
    assert sorted(rig.look(10)) == numbered(0, 9)


def test_a_copy_is_seen_before_the_truncation(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    shutil.copyfile(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.look()
    rig.write("app.log", *numbered(5, 8))
    rig.run()
    os.truncate(rig.logs / "app.log", 0)
    rig.write("app.log", *numbered(8, 9))
    assert rig.look(10) == numbered(0, 9)
    assert [each.state for each in rig.tail.status() if each.name == "app.log"] == ["following"]


def test_a_line_without_its_end_yet_is_waited_for_also_after_a_copy(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    truncate_into(rig, "app.log", "app.log.1")
    with (rig.logs / "app.log").open("a") as file:
        file.write("begun")
        file.flush()
        assert rig.look(rig.settings.rotated_seconds + 5) == numbered(0, 5)
        file.write(", ended\n")
    assert rig.look(10) == [*numbered(0, 5), "begun, ended"]


def test_copied_and_truncated_while_down(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 500))
    rig.look()
    rig.restart()
    rig.write("app.log", *numbered(500, 600))
    truncate_into(rig, "app.log", "app.log.1")
    rig.write("app.log", *numbered(600, 610))
    assert sorted(rig.look(10)) == numbered(0, 610)
    rig.restart()
    assert sorted(rig.look(10)) == numbered(0, 610)
    assert rig.sink.repeated == 0


def copied(rig: Rig, to: str) -> None:
    truncate_into(rig, "app.log", to)


def copied_and_compressed(rig: Rig, to: str) -> None:
    truncate_into(rig, "app.log", to)
    compress(rig, to)


def renamed_and_compressed(rig: Rig, to: str) -> None:
    os.rename(rig.logs / "app.log", rig.logs / to)
    compress(rig, to)


@pytest.mark.parametrize("saved", [True, False], ids=["ended", "killed"])
@pytest.mark.parametrize("rotate", [copied, copied_and_compressed, renamed_and_compressed])
@pytest.mark.parametrize(("to", "lines"), [("app.log.1", 3), ("app.log.1", 900), ("app-2026-01-01.log", 900)])
@pytest.mark.parametrize("settled", [0, 1])
def test_what_was_not_settled_has_the_same_name_wherever_it_is_found_after_a_restart(
    rig: Rig, saved: bool, rotate: Callable[[Rig, str], None], to: str, lines: int, settled: int
) -> None:
    rig.hold = True
    rig.write("app.log", *numbered(0, lines))
    rig.look()
    for each in rig.held[:settled]:
        each()
    rig.restart(saved)
    rotate(rig, to)
    rig.write("app.log", *numbered(lines, lines + 3))
    assert rig.look(70) == numbered(0, lines + 3)
    assert rig.sink.repeated >= (0 if settled else lines), "it came again"


def test_what_was_copied_before_it_was_settled_is_known_to_the_next_who_reads(rig: Rig) -> None:
    rig.hold = True
    rig.write("app.log", *numbered(0, 900))
    rig.look()
    truncate_into(rig, "app.log", "app.log.1")
    rig.write("app.log", *numbered(900, 903))
    rig.look(10)
    rig.restart()
    assert rig.look(10) == numbered(0, 903)
    rig.restart(save=False)
    compress(rig, "app.log.1")
    assert rig.look(70) == numbered(0, 903)


def test_a_copy_of_what_began_alike_is_no_copy_of_what_was_read(rig: Rig) -> None:
    """Copied and truncated twice between two looks: what is known of the first content agrees with the second at its
    beginning alone.
    """
    banner = ["the same banner"] * 300
    rig.write("app.log", *banner)
    rig.look()
    rig.write("app.log", *numbered(0, 100))
    rig.look()
    truncate_into(rig, "app.log", "app.log.2")
    rig.write("app.log", *banner, *numbered(100, 103))
    truncate_into(rig, "app.log", "app.log.1")
    rig.write("app.log", *numbered(103, 105))
    assert set(rig.look(70)) == {*banner, *numbered(0, 105)}


def test_truncated_and_at_once_longer_than_before(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    os.truncate(rig.logs / "app.log", 0)
    rig.write("app.log", *numbered(5, 30))
    assert rig.look() == numbered(0, 30)


def test_truncated_and_as_long_as_before(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    os.truncate(rig.logs / "app.log", 0)
    rig.write("app.log", *numbered(5, 10))
    assert rig.look() == numbered(0, 10)


def test_truncated_often_under_the_same_first_line(rig: Rig) -> None:
    for _ in range(5):
        rig.write("app.log", "banner", "the same")
        rig.look()
        os.truncate(rig.logs / "app.log", 0)
        rig.run()
    assert rig.sink.texts() == ["banner", "the same"] * 5


TERABYTE = 1 << 40


@pytest.mark.parametrize("lines", [[], numbered(0, 3), numbered(0, 100_000)])
def test_a_hole_is_passed_over_at_once(rig: Rig, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod makes a terabyte of zeros by one call; reading them would take a quarter of an hour of a core."""
    rig.write("app.log", *lines)
    rig.look()
    read = 0
    pread = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    os.truncate(rig.logs / "app.log", TERABYTE)
    rig.look()
    (status,) = rig.tail.status()
    assert not status.lag_bytes
    rig.write("app.log", "behind it")
    rig.look()
    rig.restart()
    rig.write("app.log", "after a restart")
    assert [each for each in rig.look() if each.strip("\0")] == [*lines, "behind it", "after a restart"]
    assert rig.sink.repeated == 0
    assert len({name for name, _ in rig.sink.lines}) == 1, "one file, one id"
    assert rig.sink.chunks[-1].start > TERABYTE, "a record's place is its place in the file"
    assert read < 32 << 20


def test_what_is_not_settled_before_a_hole_comes_again_and_nothing_behind_it_does_first(rig: Rig) -> None:
    rig.hold = True
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    os.truncate(rig.logs / "app.log", TERABYTE)
    rig.write("app.log", "behind it")
    rig.look()
    rig.held.pop()()  # what stands behind the hole is delivered, what stands before it is not
    rig.hold = False
    rig.restart()
    rig.look()
    assert [each for each in rig.sink.texts() if each.strip("\0")] == [*numbered(0, 3), "behind it"]
    assert rig.sink.repeated >= 4


def test_what_is_written_into_a_hole_is_read(rig: Rig) -> None:
    """A file that is made as long as it may become is written from its beginning on."""
    with open(rig.logs / "app.log", "wb", buffering=0) as writer:
        writer.write(b"one\n")
        os.truncate(rig.logs / "app.log", TERABYTE)
        assert rig.look(100) == ["one"]
        writer.write(b"two\n")
        assert rig.look(5) == ["one", "two"]


def test_a_file_that_is_made_as_short_as_it_was_is_the_same(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    size = (rig.logs / "app.log").stat().st_size
    rig.look()
    os.truncate(rig.logs / "app.log", TERABYTE)
    rig.look()
    os.truncate(rig.logs / "app.log", size)
    rig.write("app.log", "more")
    assert [each for each in rig.look(5) if each.strip("\0")] == [*numbered(0, 3), "more"]


def test_a_copy_with_a_hole_is_compared_at_once(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 2000))
    rig.look()
    (rig.logs / "app.log.1").write_bytes((rig.logs / "app.log").read_bytes())
    for name in ("app.log", "app.log.1"):
        os.truncate(rig.logs / name, TERABYTE)
    turns = 0
    rig.scan()
    for _ in range(200):
        turns += 1
        if rig.turn():
            break
    assert turns < 200, "it is compared a quarter of a megabyte a turn"


def test_a_writer_that_leaves_a_hole(rig: Rig) -> None:
    with open(rig.logs / "app.log", "wb", buffering=0) as writer:
        writer.write(b"first\n" * 1000)
        rig.look()
        os.truncate(rig.logs / "app.log", 0)
        writer.write(b"second\n")
        assert rig.look()[1000:] == ["second"]


def test_compressed_after_it_was_read(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 300))
    rig.look()
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.write("app.log", *numbered(300, 310))
    rig.look()
    compress(rig, "app.log.1")
    assert rig.look(30) == numbered(0, 310)
    rig.restart()
    assert rig.look(30) == numbered(0, 310)
    assert rig.sink.repeated == 0


def test_compressed_while_down_and_partly_read(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 300))
    rig.look()
    rig.restart()
    rig.write("app.log", *numbered(300, 400))
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    compress(rig, "app.log.1")
    rig.write("app.log", *numbered(400, 500))
    assert sorted(rig.look(30)) == numbered(0, 500)
    assert len({name for name, _ in rig.sink.lines}) == 2, "the compressed file has its original's id"
    rig.restart()
    rig.look(30)
    assert rig.sink.repeated == 0


def test_a_compressed_file_is_unpacked_up_to_its_position_a_stretch_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "STEP_BYTES", 1 << 10)
    rig = Rig(tmp_path, TailSettings(turn_bytes=1 << 10))
    rig.write("app.log.1", *numbered(0, 6_000))
    compress(rig, "app.log.1")
    rig.scan()
    while len(rig.sink.lines) < 3_000:
        rig.now += 0.1
        rig.turn()
    rig.restart()
    stretches: list[int] = []
    more = compressed.Content._more

    def counted(content: compressed.Content) -> bytes:
        stretches[-1] += 1
        return more(content)

    def turn(before: Callable[[], float] = rig.tail.turn) -> float:
        stretches.append(0)
        return before()

    monkeypatch.setattr(compressed.Content, "_more", counted)
    monkeypatch.setattr(rig.tail, "turn", turn)
    assert rig.look(30) == numbered(0, 6_000)
    assert rig.sink.repeated == 0
    assert sum(stretches) > 120
    assert max(stretches) <= 4 * TURNS


def test_compressed_while_it_is_unread(rig: Rig) -> None:
    rig.room = False
    rig.write("app.log", *numbered(0, 300))
    rig.look()
    compress(rig, "app.log")
    rig.look(10)
    rig.room = True
    assert rig.look(30) == numbered(0, 300)
    assert rig.sink.repeated == 0


def test_compressed_files_that_nobody_ever_read(rig: Rig) -> None:
    for number in range(3):
        rig.write(f"app.log.{number}", *numbered(number * 10, number * 10 + 10))
        compress(rig, f"app.log.{number}")
    rig.write("app.log", *numbered(30, 40))
    assert rig.look(30) == numbered(0, 40)


def test_a_damaged_compressed_file_is_named_and_the_rest_goes_on(rig: Rig) -> None:
    (rig.logs / "app.log.1.gz").write_bytes(gzip.compress(b"x\n" * 10)[:10] + b"\xff" * 100)
    rig.write("app.log", "good")
    assert rig.look(30) == ["good"]
    assert {each.name: each.state for each in rig.tail.status()}["app.log.1.gz"] == "failed"


def test_an_inode_that_is_given_again_while_down(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 5))
    rig.look()
    rig.restart()
    inode = (rig.logs / "app.log").stat().st_ino
    for number in range(200):
        (rig.logs / "app.log").unlink()
        rig.write("app.log", *numbered(5, 5 + number + 10))
        if (rig.logs / "app.log").stat().st_ino == inode:
            break
    assert sorted(set(rig.look(10))) == numbered(0, 5 + number + 10)


def test_a_thousand_files_that_begin_alike(rig: Rig) -> None:
    banner = "the same banner in every file " * 40
    for number in range(1000):
        rig.write(f"{number}.log", banner, f"own line of {number}")
    assert len(rig.look_each()) == 2000
    rig.restart()
    for number in range(0, 1000, 100):
        os.rename(rig.logs / f"{number}.log", rig.logs / f"{number}.log.1")
        rig.write(f"{number}.log.1", f"later line of {number}")
        rig.write(f"{number}.log", banner, f"new line of {number}")
    found = rig.look_each()[2000:]
    expected = [f"later line of {number}" for number in range(0, 1000, 100)]
    expected += [f"new line of {number}" for number in range(0, 1000, 100)] + [banner] * 10
    assert sorted(found) == sorted(expected)
    assert rig.sink.repeated == 0


def test_many_files_of_one_log_that_begin_alike(rig: Rig) -> None:
    banner = "the same banner in every file " * 40
    for number in range(100):
        rig.write(f"app.{number}.log", banner, f"own line of {number}")
        if number % 10 == 0:
            rig.look(1)
    assert len(rig.look(300)) == 200


def test_a_file_that_begins_as_another_is_no_copy_of_it(rig: Rig) -> None:
    rig.write("app.log", "tick", "tick")
    rig.look()
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.write("app.log", "tick", "tick", "tick")
    assert rig.look(120) == ["tick"] * 5


def test_the_last_line_without_an_end(rig: Rig) -> None:
    rig.write("app.log", "whole")
    rig.write("app.log", "torn", end="")
    rig.look()
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.write("app.log", "next")
    assert rig.look() == ["whole", "next"]
    assert rig.look(10) == ["whole", "next", "torn"]


def test_a_line_that_was_torn_grows_after_a_kill(rig: Rig) -> None:
    rig.write("app.log", "torn", end="")
    assert rig.look(rig.settings.partial_seconds + 2) == ["torn"]
    rig.restart(save=False)
    rig.write("app.log", " and more")
    assert rig.look(5) == ["torn", " and more"]
    assert rig.sink.repeated == 1
    assert [chunk.first_of_line for chunk in rig.sink.chunks[-2:]] == [True, False]


@pytest.mark.parametrize("long", [10_000_000, (1 << 20) + 1, (256 << 10) + 1, 1 << 20])
def test_long_lines_are_cut_alike_each_time(rig: Rig, long: int) -> None:
    rig.hold = True
    rig.write("app.log", "before", "é" * (long // 2) + "x" * (long % 2), "after")
    rig.look(5)
    pieces = [chunk for chunk in rig.sink.chunks if not chunk.data.endswith(b"\n")]
    assert len(pieces) == (long - 1) // (1 << 20)
    for piece in pieces:
        piece.data.decode()
    assert sum(len(each) for each in rig.sink.texts()) == len("beforeafter") + long // 2 + long % 2
    assert sum(each.lines_cut for each in rig.tail.counts().values()) == len(pieces)
    rig.restart(save=False)
    rig.look(5)
    assert rig.sink.repeated == len(rig.sink.lines)


def test_any_bytes(rig: Rig) -> None:
    data = b"\xff\xfe\n" + b"nul\0nul\n" + b"\r\n" + bytes(range(11, 256)) + b"\n"
    (rig.logs / "app.log").write_bytes(data)
    rig.scan()
    rig.run()
    assert b"".join(chunk.data for chunk in rig.sink.chunks) == data


def test_a_million_tiny_lines(rig: Rig) -> None:
    (rig.logs / "app.log").write_bytes(b"\n" * 1_000_000)
    rig.scan()
    rig.run()
    assert sum(len(chunk.data) for chunk in rig.sink.chunks) == 1_000_000


def renumbered(rig: Rig) -> None:
    """Restart as after a reboot, which gave the file system's device another number."""
    rig.tail.save()
    positions = PositionsFile(rig.state)
    positions.write([msgspec.structs.replace(each, device=each.device + 1) for each in positions.read()])
    rig.restart(save=False)


@pytest.mark.parametrize("birth", [True, False], ids=["the file system tells births", "it tells none"])
def test_a_device_that_has_another_number_after_a_reboot_has_the_same_files(
    rig: Rig, birth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not birth:
        monkeypatch.setattr(files, "birth_of", lambda _: 0)
    for name in ("app.log.1", "app.log"):
        rig.write(name, *numbered(0, 50), name)
    rig.look(20)
    before = rig.sink.texts()
    renumbered(rig)
    rig.write("app.log", "more")
    assert rig.look(20) == [*before, "more"]
    assert rig.sink.repeated == 0


def test_another_file_under_its_number_is_told_by_what_it_holds(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "birth_of", lambda _: 0)
    rig.write("app.log", *numbered(0, 50))
    rig.look()
    rig.tail.save()
    with open(rig.logs / "app.log", "r+b") as file:  # the same inode number, as another device may have it
        file.write(b"other\n" * 208 + b"\n\n")
    renumbered(rig)
    rig.look(20)
    assert rig.sink.texts() == [*numbered(0, 50), *["other"] * 208, "", ""], "in doubt a file is one of its own"


def test_a_compressed_file_that_was_read_long_ago_is_not_read_again_after_a_reboot(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 300))
    rig.look()
    os.rename(rig.logs / "app.log", rig.logs / "app.log.1")
    rig.write("app.log", *numbered(300, 310))
    rig.look()
    compress(rig, "app.log.1")
    rig.look(30)
    rig.run(2 * rig.settings.forget_seconds)
    renumbered(rig)
    assert rig.look(30) == numbered(0, 310)
    assert rig.sink.repeated == 0


def test_positions_follow_what_is_settled(rig: Rig) -> None:
    rig.hold = True
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    rig.write("app.log", *numbered(3, 6))
    rig.look()
    rig.held.pop(1)()
    rig.restart()
    rig.look()
    assert rig.sink.repeated == 6, "what was settled behind what was not comes again"
    rig.settle()
    rig.restart()
    rig.look()
    assert rig.sink.repeated == 6


def test_pods_take_turns(rig: Rig) -> None:
    loud = LogSource(SourceKey("loud"), PodUid("loud"))
    quiet = LogSource(SourceKey("quiet"), PodUid("quiet"))
    rig.write("big", *["x" * 1000] * 20_000)
    rig.scan(loud)
    (rig.logs / "big").unlink()
    rig.write("small", "here")
    rig.scan(quiet)
    rig.turn()
    rig.tail.turn()
    assert quiet in [source for source, _ in rig.taken[:4]]


def test_nothing_is_read_without_room(rig: Rig) -> None:
    rig.room = False
    rig.write("app.log", *numbered(0, 3))
    assert rig.look(5) == []
    assert [each.state for each in rig.tail.status()] == ["blocked"]
    rig.room = True
    assert rig.look() == numbered(0, 3)


def test_those_without_room_are_asked_seldom_or_when_there_is_some(rig: Rig) -> None:
    rig.room = False
    for number in range(50):
        rig.write(f"{number}.log", "line")
    rig.look_each(2)
    asked = rig.asked
    rig.run(1)
    assert rig.asked - asked <= 50 * 5
    rig.room = True
    assert rig.tail.turn() > 0, "nobody said so yet"
    rig.tail.wake()
    while not rig.turn():
        pass
    assert len(rig.sink.texts()) == 50


def test_goes_on_from_where_another_program_was(rig: Rig) -> None:
    rig.write("app.log", "old", "new")
    rig.tail.add(os.open(rig.logs / "app.log", os.O_RDONLY), LogSource(SourceKey("a"), PodUid("a")), "app.log", 4)
    rig.run()
    assert rig.sink.texts() == ["new"]


def test_what_is_no_regular_file_is_refused(rig: Rig) -> None:
    source = LogSource(SourceKey("a"), PodUid("a"))
    assert not rig.tail.add(os.open(rig.logs, os.O_RDONLY), source, "logs")
    assert not rig.tail.add(os.open("/dev/zero", os.O_RDONLY), source, "zero")
    assert list(rig.tail.status()) == []


def test_the_clock_of_the_node_jumps(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    os.utime(rig.logs / "app.log", (0, 0))
    assert rig.look() == numbered(0, 3)
    rig.write("app.log", *numbered(3, 4))
    os.utime(rig.logs / "app.log", (2**32, 2**32))
    assert rig.look() == numbered(0, 4)


def test_a_file_that_came_and_went_is_forgotten(rig: Rig) -> None:
    rig.write("app.log", *numbered(0, 3))
    rig.look()
    (rig.logs / "app.log").unlink()
    rig.run(rig.settings.forget_seconds + rig.settings.rotated_seconds + 5)
    rig.restart()
    assert rig.tail.remembered() == 0


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_left_out_for_hours_goes_on_where_it_was(rig: Rig, restarts: bool) -> None:
    rig.write("app.log", "one", "two")
    rig.look()
    rig.tail.leave(SOURCE.key, left_out=True)
    rig.run(10)
    assert list(rig.tail.status()) == [], "it is closed"
    rig.write("app.log", "three")
    if restarts:
        rig.restart()
    rig.run(5 * 3600)
    assert rig.look() == ["one", "two", "three"] and not rig.sink.repeated
    rig.tail.leave(SOURCE.key)
    rig.run(rig.settings.forget_seconds + 20)
    assert rig.tail.remembered() == 0, "a pod that is gone is forgotten sooner"


def test_what_nobody_had_a_place_for_since_the_start_goes_on_where_it_was(rig: Rig) -> None:
    """Input: two files; after a restart there is a place for one of them only, and for the other one hours later."""
    for name in ("a.log", "b.log"):
        rig.write(name, f"{name} one")
    rig.look_each()
    rig.restart()
    (rig.logs / "b.log").rename(rig.logs.parent / "b.log")
    rig.write("a.log", "a.log two")
    rig.look_each(5 * 3600)
    (rig.logs.parent / "b.log").rename(rig.logs / "b.log")
    rig.write("b.log", "b.log two")
    assert rig.look_each() == ["a.log one", "b.log one", "a.log two", "b.log two"] and not rig.sink.repeated


def test_a_file_whose_lines_break_those_behind_it_stops_no_other(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.poison = b"poison"
    rig.write("a.log", "good", "poison")
    rig.write("b.log", "other")
    rig.look_each()
    rig.write("b.log", "goes on")
    rig.look_each()
    assert rig.sink.texts() == ["other", "goes on"]
    assert "a.log: its lines cannot be processed" in caplog.text
    assert {each.name: each.state for each in rig.tail.status()} == {"a.log": "failed", "b.log": "following"}
    rig.poison = None
    rig.restart()
    assert "good" in rig.look_each()


def test_memory_after_five_thousand_files_is_what_it_was(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TailSettings(forget_seconds=1.0, rotated_seconds=0.3))

    def come_and_go(begin: int, end: int) -> None:
        for number in range(begin, end):
            rig.write(f"{number}.log", *numbered(0, 3))
        rig.look_each()
        assert len(rig.sink.lines) == 3 * (end - begin)
        for number in range(begin, end):
            (rig.logs / f"{number}.log").unlink()
        rig.run(9)
        assert len(rig.tail.closed()) == end - begin, "each is told once"
        rig.sink = Sink()
        rig.taken.clear()
        gc.collect()

    come_and_go(0, 500)
    before = sys.getallocatedblocks()
    for number in range(500, 5500, 500):
        come_and_go(number, number + 500)
    more = sys.getallocatedblocks() - before
    assert list(rig.tail.status()) == []
    assert more < 2500, f"{more} objects more than before 5,000 files came and went"
    rig.tail.close()


@pytest.mark.parametrize("start", ["some", "all"])
@pytest.mark.parametrize("restarts", [False, True])
def test_what_another_program_has_read_is_not_read_again_once_it_is_compressed(
    rig: Rig, start: str, restarts: bool
) -> None:
    rig.write("app.log.1", *(f"{number:03}" for number in range(900)))
    path = rig.logs / "app.log.1"
    offset = 4 * 600 if start == "some" else path.stat().st_size
    rig.tail.add(os.open(path, os.O_RDONLY), SOURCE, path.name, offset)
    rig.write("app.log", "more")
    rig.look(10)
    expected = [f"{number:03}" for number in range(offset // 4, 900)]
    assert sorted(rig.sink.texts()) == sorted([*expected, "more"])
    if restarts:
        rig.restart()
        rig.look(10)
    path.with_name("app.log.1.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    for _ in range(5):
        rig.look(30)
    assert len(rig.sink.lines) == len(expected) + 1


def test_a_compressed_file_that_another_program_has_read_is_not_read_again(rig: Rig) -> None:
    path = rig.logs / "app.log.1.gz"
    path.write_bytes(gzip.compress(b"old\n"))
    rig.tail.add(os.open(path, os.O_RDONLY), SOURCE, path.name, path.stat().st_size)
    rig.write("app.log", "new")
    assert rig.look(30) == ["new"]
    rig.restart()
    assert rig.look(30) == ["new"]


@pytest.mark.parametrize("moved", [1, 3])
def test_a_file_that_was_moved_away_is_not_taken_for_the_one_that_is_written(rig: Rig, moved: int) -> None:
    for number in range(moved):
        rig.write("app.log", f"{number}")
        rig.look(5)
        found = (rig.logs / "app.log").stat()
        (rig.logs / "app.log").rename(rig.logs.parent / f"{number}")
        rig.tail.named(found.st_dev, found.st_ino, "")
    rig.write("app.log", "half", end="")
    rig.look(30)
    assert "half" not in rig.sink.texts(), "somebody writes the rest of it"
    assert [each.state for each in rig.tail.status()] == ["rotated"] * moved + ["following"]
    rig.write("app.log", " a line")
    assert rig.look(5)[-1] == "half a line"
