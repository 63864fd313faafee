"""A tail over a folder of real files, with a clock of its own, and who takes its lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.coverage import Coverage
from nodeagent.logs.tail.interfaces import LogSource, SourceKey, TailSettings
from nodeagent.logs.tail.tail import Tail
from nodeagent.vocabulary import PodUid

SOURCE = LogSource(SourceKey("uid-1/app"), PodUid("uid-1"))


class Sink:
    """All that was ever delivered, over restarts; the same id and offset twice must have the same line."""

    def __init__(self) -> None:
        self.lines: dict[tuple[bytes, int], bytes] = {}
        self.order: list[bytes] = []
        self.repeated = 0
        self.chunks: list[Chunk] = []

    def take(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        offset = chunk.start
        for line in chunk.data.splitlines(keepends=True) if b"\r" not in chunk.data else _lines(chunk.data):
            before = self.lines.get((chunk.file, offset))
            assert before is None or before == line, f"{chunk.file!r} at {offset}: {before!r}, then {line!r}"
            if before is None:
                self.lines[chunk.file, offset] = line
                self.order.append(line.rstrip(b"\n"))
            else:
                self.repeated += 1
            offset += len(line)

    def texts(self) -> list[str]:
        """Every line, under each of its names once, in the order of its first delivery."""
        return [each.decode() for each in self.order]


def _lines(data: bytes) -> Iterator[bytes]:
    while data:
        line, end, data = data.partition(b"\n")
        yield line + end


class RigTaker:
    """Takes lines, and settles them at once unless the rig is told to hold them."""

    def __init__(self, rig: Rig, source: LogSource, coverage: Coverage) -> None:
        self._rig = rig
        self._source = source
        self._coverage = coverage

    def room(self) -> bool:
        self._rig.asked += 1
        return self._rig.room

    def take(self, chunk: Chunk) -> None:
        if self._rig.poison is not None and self._rig.poison in chunk.data:
            raise ValueError("as if it had a fault")
        self._rig.sink.take(chunk)
        self._rig.taken.append((self._source, len(chunk.data)))
        settle = self._coverage.stretch(chunk.end)
        if self._rig.hold:
            self._rig.held.append(settle)
        else:
            settle()

    def ended(self) -> None:
        self._rig.ended += 1


class Rig:
    def __init__(self, folder: Path, settings: TailSettings | None = None) -> None:
        self.logs = folder / "logs"
        self.state = folder / "state"
        self.logs.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.settings = settings or TailSettings()
        self.now = 1000.0
        self.sink = Sink()
        self.room = True
        self.asked = 0
        self.hold = False
        self.poison: bytes | None = None
        self.held: list[Callable[[], None]] = []
        self.taken: list[tuple[LogSource, int]] = []
        self.ended = 0
        self.tail = self._tail()

    def _tail(self) -> Tail:
        def open_taker(source: LogSource, file: bytes, coverage: Coverage) -> RigTaker:
            return RigTaker(self, source, coverage)

        return Tail("node-1", self.state, open_taker, self.settings, lambda: self.now)

    def scan(self, source: LogSource = SOURCE) -> None:
        """Hand over what is in the folder, as control does: each file with its present name."""
        for entry in sorted(os.scandir(self.logs), key=lambda each: each.name):
            found = entry.stat()
            self.tail.named(found.st_dev, found.st_ino, entry.name)
            self.tail.add(os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC), source, entry.name)

    def look_each(self, seconds: float = 1.0) -> list[str]:
        """As :meth:`look`, where each file is a log with those that go on with its name."""
        for entry in sorted(os.scandir(self.logs), key=lambda each: each.name):
            source = LogSource(SourceKey(entry.name.removesuffix(".1")), PodUid("uid-1"))
            self.tail.add(os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC), source, entry.name)
        self.run(seconds)
        return self.sink.texts()

    def turn(self) -> float:
        """Have the tail take a turn, and write the positions file if that is waited for."""
        left = self.tail.turn()
        if not self.tail.urgent:
            return left
        self.tail.save()
        return 0.0

    def run(self, seconds: float = 0.6) -> None:
        """Let *seconds* pass for the tail, with all that it does in them."""
        end = self.now + seconds
        while True:
            left = self.turn()
            if left:
                if self.now >= end:
                    return
                self.now += max(min(left, end - self.now), 0.001)

    def look(self, seconds: float = 0.6) -> list[str]:
        """Scan, let time pass, and return all lines so far."""
        self.scan()
        self.run(seconds)
        return self.sink.texts()

    def settle(self) -> None:
        """All that is held is delivered."""
        held, self.held = self.held, []
        for each in held:
            each()

    def restart(self, save: bool = True) -> None:
        """End the tail, as a kill does where nothing is saved, and begin another one."""
        if save:
            self.tail.save()
        self.tail.close()
        self.held.clear()
        self.tail = self._tail()

    def write(self, name: str, *lines: str, end: str = "\n") -> None:
        with open(self.logs / name, "a") as file:
            file.write("".join(each + end for each in lines))
