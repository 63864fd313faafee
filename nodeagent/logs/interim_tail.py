"""Reads files from their beginning, without positions: stands in for the tail (``tail/``) until that is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.coverage import Coverage, Mark
from nodeagent.logs.tail.interfaces import FileStatus, LogSource, OpenTaker, TailCounts, TailSettings, Taker
from nodeagent.vocabulary import PodUid

LOOK_SECONDS = 0.1


class Tail:
    """As ``tail/__init__.py`` describes it."""

    def __init__(self, node: str, folder: Path, open_taker: OpenTaker, settings: TailSettings) -> None:
        del node, folder
        self._open = open_taker
        self._settings = settings
        self._files: dict[tuple[int, int], tuple[int, Taker, list[int], Coverage]] = {}
        self._wake = asyncio.Event()

    def add(self, descriptor: int, source: LogSource, name: str) -> None:
        """Take *descriptor* over."""
        del name
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        if key in self._files:
            os.close(descriptor)
            return
        coverage = Coverage(Mark(0, 0, b""), lambda: None)
        self._files[key] = (descriptor, self._open(source, b"%x-%x" % key, coverage), [0], coverage)

    def named(self, device: int, inode: int, name: str) -> None:
        """It does not matter here."""

    def status(self) -> Iterator[FileStatus]:
        """Nothing is known."""
        return iter(())

    def counts(self) -> dict[PodUid, TailCounts]:
        """Nothing is counted."""
        return {}

    def wake(self) -> None:
        """There is room again."""
        self._wake.set()

    async def run(self) -> None:
        """Read what there is, for ever."""
        while True:
            for key, (descriptor, taker, at, coverage) in self._files.items():
                data = os.pread(descriptor, self._settings.turn_bytes, at[0]) if taker.room() else b""
                whole = data[: data.rfind(b"\n") + 1]
                if not whole:
                    continue
                coverage.begin_chunk()
                taker.take(Chunk(b"%x-%x" % key, at[0], whole))
                at[0] += len(whole)
                coverage.end_chunk({}, Mark(at[0], 0, b""))
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        """Nothing is kept."""
