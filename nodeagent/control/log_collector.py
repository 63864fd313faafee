"""The collector's process as control knows it: there is one while agent.yaml has ``logs:``, it is
replaced when it dies, and a control that succeeds another one goes on with the one that runs.

What it is told is what the finder (``log_finder.py``) finds. A new collector knows nothing, so the
finder tells everything anew; to one that an earlier control started too, and then what is not
among it is gone. That one is told its first words anew as well: where it was told others, it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, assert_never

from nodeagent.channel import Channel, pair
from nodeagent.control.log_scan import FileId, FoundFile
from nodeagent.control.worker_process import TellsSupervisor
from nodeagent.logs.sources import SourceFacts
from nodeagent.messages import (
    COLLECTOR,
    FROM_COLLECTOR,
    AllLogsTold,
    AskCollector,
    Collecting,
    CollectorCounted,
    CollectorRows,
    FinishLogs,
    Fork,
    FromCollector,
    LogFileClosed,
    LogFileOpened,
    LogFilePutAside,
    LogFileRenamed,
    LogRoomWanted,
    LogSourceGone,
    LogSourceTold,
    Signal,
    StartCollector,
    ToCollector,
)
from nodeagent.parts import Parts
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, MessageError, Unchecked

RESPAWN_SECONDS: Final = 1.0
"""A collector that dies is replaced at once, and one that dies soon after its start after so long."""
END_SECONDS: Final = 1.0
"""Beyond what it may take, a collector that was told to finish is given so long."""
ANSWER_SECONDS: Final = 2.0
"""A collector that is silent for so long is left out of an answer."""
MAX_ROWS: Final = 50_000
log = logging.getLogger("nodeagent.logs")


class Found(Protocol):
    """Who finds files, and hears what became of them: ``LogFinder``."""

    def forget(self) -> None:
        """Tell everything anew."""

    def closed(self, file: FileId) -> None:
        """A file is not open any more."""

    def put_aside(self, file: FileId, size: int, modified: int) -> None:
        """A file is not open any more though it is there: it is read as it is, and others want its room."""

    @property
    def settled(self) -> bool:
        """Everything there is was told."""

    def keys(self) -> Iterable[str]:
        """Return the keys of all sources."""

    def excluded(self) -> Iterable[str]:
        """Return the keys of what is left out of pods that live."""


@dataclass(slots=True)
class Answer:
    """How the collector fares."""

    files: list[Unchecked] = field(default_factory=list)
    """A row a file."""
    sinks: list[Unchecked] = field(default_factory=list)
    """A row a sink."""
    warnings: list[str] = field(default_factory=list)
    """What is wrong, in words."""


class _Process:
    """One collector and control's end of its channel."""

    def __init__(self, number: int, pid: int = 0) -> None:
        self.number = number
        self.pid = pid
        self.channel: Channel[FromCollector, ToCollector]
        self.killed = False
        self.collecting = False
        self.started = 0.0
        self.leaving = False
        """It was told to finish, and another one takes its place."""


class LogCollector:
    """Has a collector run, and talks to it. ``Children`` of the supervisor's link, ``Tells`` of the finder."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        supervisor: TellsSupervisor,
        start: StartCollector,
        counted: Callable[[Unchecked], None],
        died: Callable[[], None],
        ended: Callable[[], None],
        *,
        stop_seconds: float,
    ) -> None:
        """*start*: what a collector is told first. *counted* takes what it has counted; *died* is called for each
        that died, *ended* for each that is no more. *stop_seconds*: how long what was read may take to be
        delivered when it is to end.
        """
        self._loop = loop
        self._supervisor = supervisor
        self._start = start
        self._counted = counted
        self._died = died
        self._ended = ended
        self._stop_seconds = stop_seconds
        self._numbers = itertools.count(1)
        self._questions = itertools.count(1)
        self._process: _Process | None = None
        self._adopted = False
        """The process was another control's: what is gone since then has to be told."""
        self._counts_known = True
        """All that the process has counted was told to this control."""
        self._surplus: list[_Process] = []
        """Others of earlier controls, which end."""
        self._finder: Found | None = None
        self._stopping = False
        self._gone = asyncio.Event()
        self._gone.set()
        self._answers: dict[int, tuple[asyncio.Future[None], Answer]] = {}

    @property
    def pid(self) -> int:
        """Return the process id; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    def missing(self) -> list[str]:
        """Return, in words, what is wrong with the process."""
        if self._stopping or (self._process is not None and self._process.collecting):
            return []
        if self._process is None:
            return ["logs: the collector is not up"]
        return ["logs: the collector does not read yet: it waits for logs.stateDirectory, or for its first words"]

    # -- the process --

    @asynccontextmanager
    async def run(self, parts: Parts, finder: Found) -> AsyncIterator[None]:
        """Have it run, and be told what *finder* finds; leaving ends it in order."""
        self._finder = finder
        if self._process is None:
            self._spawn()
        parts.start("the talk with the logs' collector", self._tell_all)
        yield
        await self.finish()

    async def _tell_all(self) -> None:
        """Once everything is told, say so to a collector of an earlier control."""
        while self._adopted:
            if self._finder is not None and self._finder.settled:
                for key in self._finder.excluded():  # since when, nobody knows
                    self.source_gone(key, left_out=True)
                self._send(AllLogsTold(tuple(self._finder.keys())))
                self._adopted = False
            await asyncio.sleep(0.05)

    def adopt(self, pid: int, end: socket.socket) -> None:
        """An earlier control's collector lives; *end* is that one's end of its channel."""
        process = _Process(next(self._numbers), pid)
        process.collecting = True
        self._connect(process, end)
        if self._process is None:
            self._process = process
            self._adopted = True
            self._counts_known = False
            self._gone.clear()
            self._send(self._start)
        else:
            self._surplus.append(process)
            try:
                process.channel.send(FinishLogs(self._stop_seconds))
            except OSError:
                self._kill(process)

    def forked(self, number: int, pid: int) -> None:
        """The supervisor forked it."""
        for process in self._all():
            if process.number == number:
                process.pid = pid
                if process.killed:
                    self._kill(process)

    def exited(self, pid: int, status: int) -> None:
        """It is gone: another one takes its place, unless it was told to go."""
        for process in self._all():
            if process.pid == pid:
                process.channel.hear_out()
                if process in self._surplus:
                    self._surplus.remove(process)
                else:
                    self._lost(process, status)

    def _lost(self, process: _Process, status: int) -> None:
        self._process = None
        self._gone.set()
        self._adopted = False
        self._counts_known = True
        self._ended()
        for answered, _ in self._answers.values():
            if not answered.done():
                answered.set_result(None)
        if self._stopping:
            return
        if process.leaving:
            self._respawn()
            return
        if status == 0:
            # An earlier control told it to, and died before it was gone.
            log.info("the logs' collector (pid %d) has ended as it was told, and another one goes on", process.pid)
        else:
            self._died()
            log.error("the logs' collector (pid %d) died with status %d and is replaced", process.pid, status)
        soon = self._loop.time() - process.started < RESPAWN_SECONDS
        self._loop.call_later(RESPAWN_SECONDS if soon else 0.0, self._respawn)

    def _respawn(self) -> None:
        if self._stopping or self._process is not None:
            return
        try:
            self._spawn()
        except OSError as error:
            log.error("the logs' collector cannot be started: %s; it is tried again", error.strerror)
            self._loop.call_later(RESPAWN_SECONDS, self._respawn)

    def _spawn(self) -> None:
        """Have a collector forked, and everything told to it. Raises OSError."""
        process = _Process(next(self._numbers))
        process.started = self._loop.time()
        ours, theirs = pair()
        try:
            ends = (FileDescriptor(theirs.fileno()), FileDescriptor(ours.fileno()))
            self._supervisor.send(Fork(COLLECTOR, process.number, *ends))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._connect(process, ours)
        self._process = process
        self._gone.clear()
        self._send(self._start)
        if self._finder is not None:
            self._finder.forget()

    def _connect(self, process: _Process, end: socket.socket) -> None:
        def misunderstood(error: MessageError) -> None:
            log.error("the logs' collector says what none says (%s) and is killed", error)
            self._kill(process)

        process.channel = Channel(
            self._loop,
            end,
            FROM_COLLECTOR,
            heard=lambda message: self._hear(process, message),
            misunderstood=misunderstood,
            closed=lambda: self._kill(process),
        )

    def _kill(self, process: _Process) -> None:
        """End one that cannot be talked to; :meth:`exited` replaces it."""
        process.killed = True
        process.channel.close()
        if process.pid:
            self._supervisor.send(Signal(process.pid, signal.SIGKILL))

    def _all(self) -> list[_Process]:
        return [*([self._process] if self._process is not None else []), *self._surplus]

    def restart(self, start: StartCollector, *, stop_seconds: float) -> None:
        """Have another one go on, which is told *start*, as soon as the one that runs has ended in order."""
        self._start = start
        self._stop_seconds = stop_seconds
        process = self._process
        if process is None or self._stopping:
            return
        self._send(FinishLogs(stop_seconds))
        process.leaving = True
        process.collecting = False
        self._loop.call_later(stop_seconds + END_SECONDS, self._kill_late, process)

    def _kill_late(self, process: _Process) -> None:
        if process is self._process:
            self._kill(process)

    # -- its end --

    def let_go(self) -> None:
        """Another daemon takes the node over: its collector waits for the folder that this one has."""
        if not self._stopping:
            self._stopping = True
            self._send(FinishLogs(self._stop_seconds))

    async def finish(self) -> None:
        """Have it deliver what it has read, save its positions and end; one that does not is killed."""
        self.let_go()
        try:
            await asyncio.wait_for(self._gone.wait(), self._stop_seconds + END_SECONDS)
        except TimeoutError:
            log.error("the logs' collector has not ended in time and is killed; what it had is read again")
            if self._process is not None:
                self._kill(self._process)

    # -- what it is told --

    def source(self, source: SourceFacts) -> None:
        """Tell where lines come from."""
        self._send(LogSourceTold(source.key, source.to_json()))

    def file(self, source: str, found: FoundFile) -> None:
        """Hand a file over."""
        opened = found.opened
        file = FileDescriptor(opened.descriptor)
        self._send(LogFileOpened(source, found.name, opened.device, opened.inode, found.start, file))

    def renamed(self, file: FileId, name: str) -> None:
        """Tell what a file is called now."""
        self._send(LogFileRenamed(*file, name))

    def room_wanted(self, uid: PodUid, files: int) -> None:
        """Tell that a pod has so many files that are not open, as it has too many."""
        self._send(LogRoomWanted(uid, files))

    def source_gone(self, key: str, *, left_out: bool) -> None:
        """Tell that nothing more comes of a source, or is wanted of it."""
        self._send(LogSourceGone(key, left_out))

    def _send(self, message: ToCollector) -> None:
        """One that cannot be told something would lack it for good: it is replaced."""
        process = self._process
        if process is None or process.killed or process.leaving:
            return
        try:
            process.channel.send(message)
        except OSError as error:
            log.error("the logs' collector cannot be told anything and is killed: %s", os.strerror(error.errno or 0))
            self._kill(process)

    async def ask(self) -> Answer:
        """Return how its files and sinks fare, after what it counted was told."""
        found = Answer()
        if self._process is None or not self._process.collecting:
            return found
        number = next(self._questions)
        answered: asyncio.Future[None] = self._loop.create_future()
        self._answers[number] = (answered, found)
        self._send(AskCollector(number))
        await asyncio.wait([answered], timeout=ANSWER_SECONDS)
        self._answers.pop(number, None)
        return found

    # -- what it says --

    def _hear(self, process: _Process, message: FromCollector) -> None:
        match message:
            case Collecting():
                process.collecting = True
            case LogFileClosed():
                if self._finder is not None and process is self._process:
                    self._finder.closed((message.device, message.inode))
            case LogFilePutAside():
                if self._finder is not None and process is self._process:
                    self._finder.put_aside((message.device, message.inode), message.size, message.modified)
            case CollectorCounted():
                self._take_counts(message)
            case CollectorRows():
                self._answered(message)
            case _:
                assert_never(message)

    def _take_counts(self, message: CollectorCounted) -> None:
        """What an earlier control was told of is told anew, whole."""
        self._counts_known = self._counts_known or message.whole
        if self._counts_known:
            self._counted(message.report)

    def _answered(self, message: CollectorRows) -> None:
        waiting = self._answers.get(message.number)
        if waiting is None:
            return
        answered, found = waiting
        found.files.extend(message.files[: MAX_ROWS - len(found.files)])
        found.sinks.extend(message.sinks[: MAX_ROWS - len(found.sinks)])
        found.warnings.extend(message.warnings[: MAX_ROWS - len(found.warnings)])
        if not message.more and not answered.done():
            answered.set_result(None)
