"""What is known of files that were closed, however many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.tail import files
from nodeagent.logs.tail.by_inode import ByInode
from nodeagent.logs.tail.identity import Inode
from tests.unit.logs.tail.rig import SOURCE, Rig

INODES = st.builds(Inode, st.integers(1, 2), st.integers(1, 3), st.integers(0, 2))


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "take"]), INODES, st.integers(0, 1))))
def test_all_that_is_known_of_a_file_is_found(steps: list[tuple[str, Inode, int]]) -> None:
    known: ByInode[int] = ByInode()
    rows: list[tuple[Inode, int]] = []
    for what, inode, value in steps:
        match what:
            case "add":
                known.add(inode, value)
                rows.append((inode, value))
            case "remove":
                known.remove(inode, value)
                rows = [each for each in rows if each != (inode, value)]
            case _:
                assert known.take(inode) == [value for each, value in rows if each.is_still(inode)]
                rows = [each for each in rows if not each[0].is_still(inode)]
        assert known.still(inode) == [value for each, value in rows if each.is_still(inode)]
        assert known.may_be(inode) == [value for each, value in rows if each.may_be(inode)]
        assert bool(known) == bool(rows)
        assert sorted(known, key=str) == sorted(rows, key=str)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.tail.close()


def put_aside(rig: Rig, count: int) -> list[os.stat_result]:
    """Have so many files read, and closed to make room."""
    for number in range(count):
        rig.write(f"{number}.log", f"line of {number}")
    rig.look(1)
    rig.now += 10
    rig.run(1)
    closed = rig.tail.make_room(SOURCE.uid, count)
    assert len(closed) == count - 1, "all but the newest"
    return [(rig.logs / each.name).stat() for each in closed]


def hand_over(rig: Rig) -> None:
    """Hand over what is there, without a word on names."""
    for each in sorted(rig.logs.iterdir()):
        rig.tail.add(os.open(each, os.O_RDONLY | os.O_CLOEXEC), SOURCE, each.name)


@pytest.mark.parametrize("how", ["gone", "wanted again"])
def test_of_each_file_that_was_put_aside_no_others_are_gone_through(
    rig: Rig, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put_aside(rig, 200)
    compared: list[Inode] = []
    may_be = Inode.may_be

    def counted(inode: Inode, now: Inode) -> bool:
        compared.append(inode)
        return may_be(inode, now)

    monkeypatch.setattr(Inode, "may_be", counted)
    if how == "gone":
        for each in there:
            rig.tail.named(each.st_dev, each.st_ino, "")
    else:
        hand_over(rig)
        rig.run(1)
    assert len(rig.sink.lines) == 200 and not rig.sink.repeated
    assert len(compared) < 40 * len(there), "none is compared but with few"


def test_a_file_that_was_put_aside_is_forgotten_once_another_one_has_its_number(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: the new file is handed over before anybody says that the old one is gone."""
    put_aside(rig, 2)
    monkeypatch.setattr(files, "birth_of", lambda _: 77)
    hand_over(rig)
    for each in rig.logs.iterdir():
        each.unlink()
    monkeypatch.undo()
    rig.tail.leave(SOURCE.key)
    for _ in range(3):
        rig.now += 1000
        rig.run(1)
    assert not list(rig.tail.status())
    assert rig.tail.remembered() == 0
