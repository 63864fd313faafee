"""A process that tails a folder as the collector does, and writes what it takes to a file that outlives it.

``python reader.py FOLDER``: logs in ``FOLDER/logs``, positions in ``FOLDER/state``; every chunk becomes one line
of ``FOLDER/taken``, settled a moment later. It ends when it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.coverage import Coverage
from nodeagent.logs.tail.interfaces import LogSource, SourceKey, TailSettings
from nodeagent.logs.tail.tail import Tail
from nodeagent.vocabulary import PodUid

SETTINGS = TailSettings(turn_bytes=8 << 10, idle_seconds=0.02, rotated_seconds=0.5, save_seconds=0.05)
SOURCE = LogSource(SourceKey("uid-1/app"), PodUid("uid-1"))


class Writer:
    """Takes chunks into a file; what is held is settled by the loop's next rounds."""

    def __init__(self, taken: int, coverage: Coverage, held: list[Callable[[], None]]) -> None:
        self._taken = taken
        self._coverage = coverage
        self._held = held

    def room(self) -> bool:
        return len(self._held) < 8

    def take(self, chunk: Chunk) -> None:
        row = json.dumps([chunk.file.decode(), chunk.start, chunk.data.decode()])
        os.write(self._taken, row.encode() + b"\n")
        self._held.append(self._coverage.stretch(chunk.end))

    def ended(self) -> None:
        pass


async def follow(folder: Path) -> None:
    taken = os.open(folder / "taken", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(taken, b"\n")  # behind what a killed one may have torn
    held: list[Callable[[], None]] = []
    tail = Tail("node-1", folder / "state", lambda _source, _id, cover: Writer(taken, cover, held), SETTINGS)
    reading = asyncio.create_task(tail.run())
    while not reading.done():
        for entry in sorted(os.scandir(folder / "logs"), key=lambda each: each.name):
            hand_over(tail, entry)
        await asyncio.sleep(0.005)  # as long as a sink may take to answer
        settled = held[:4]
        del held[:4]
        for each in settled:
            each()
    await reading


def hand_over(tail: Tail, entry: os.DirEntry[str]) -> None:
    try:
        found = entry.stat()
        tail.named(found.st_dev, found.st_ino, entry.name)
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # rotated away meanwhile
    tail.add(descriptor, SOURCE, entry.name)


if __name__ == "__main__":
    asyncio.run(follow(Path(sys.argv[1])))
