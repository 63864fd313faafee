"""Watches of pods' folders: as many as there are folders, whatever pods do, and no pod's events take all the time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.control.log_watches import MAX_EVENTS, LogWatches
from nodeagent.resources import inotify
from nodeagent.vocabulary import PodUid
from tests.waiting import until

POD = PodUid("u1")


def watched(watches: LogWatches) -> int:
    """How many watches the kernel has."""
    return Path(f"/proc/self/fdinfo/{watches._descriptor}").read_text().count("inotify wd:")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(watches: LogWatches, *folders: Path) -> None:
    with watches.look(POD):
        for each in folders:
            with opened(each) as descriptor:
                watches.watch(POD, descriptor)


def test_a_folder_that_was_moved_away_is_watched_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        watches = LogWatches(lambda _: None)
        watches.open()
        try:
            for number in range(20):
                folder = tmp_path / "a"
                folder.mkdir()
                look(watches, tmp_path, folder)
                folder.rename(tmp_path / f"b{number}")
            assert watched(watches) == 2
        finally:
            watches.close()

    asyncio.run(scenario())


def test_a_pod_with_too_many_events_is_watched_again_at_its_next_look(tmp_path: Path) -> None:
    told: list[PodUid | None] = []

    async def scenario() -> None:
        watches = LogWatches(told.append)
        watches.open()
        try:
            look(watches, tmp_path)
            for _ in range(MAX_EVENTS):
                (tmp_path / "x.log").touch()
                (tmp_path / "x.log").unlink()
            await until(lambda: watched(watches) == 0, "the end of the watch")
            assert POD in told, "it is looked at for what there was"
            look(watches, tmp_path)
            told.clear()
            (tmp_path / "y.log").touch()
            await until(lambda: told == [POD], "the event of a pod that has become quiet")
        finally:
            watches.close()

    asyncio.run(scenario())


def test_events_that_come_as_fast_as_they_are_read_are_left_for_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def endless(_: int, most: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 1000, "it would never end"
        return inotify._EVENT.pack(1, inotify.CREATE, 0, 0) * (most // inotify._EVENT.size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", endless)
        found = inotify.events(0, 3)
    assert len(found) == 3 * 65536 // inotify._EVENT.size
