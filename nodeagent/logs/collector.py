"""The collector's process: files that control hands over are read, made into records and delivered.

It has no privilege (user 1337, no capability) and opens nothing but its own folder and what sinks are
told to use. What is slow (disk, compression, sinks) is slow here, where no traffic waits for it.

Composition::

    control ─▶ Collector ─add─▶ Tail ─chunks─▶ FileStream (a file's Taker) ─records─▶ Lane ─▶ sink
                                  ▲               Processor                         │
                                  └──────────────── Receipt: settled ───────────────┘

It begins when the folder of positions is its own: a predecessor may still deliver what it has read. When
it is told to finish it reads no more, gives what is under way its time, saves how far everything is
settled, and ends; the next one reads on from there.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Final, assert_never

import uvloop

from nodeagent.channel import Channel
from nodeagent.errors import NodeagentError, shown
from nodeagent.istio import USER
from nodeagent.logs.counting import CountsTold, tailed
from nodeagent.logs.priority import give_way
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts, from_json
from nodeagent.logs.streams import FileStreams
from nodeagent.logs.tail.interfaces import FileStatus, LogSource, SourceKey, TailSettings
from nodeagent.logs.tail.tail import Tail
from nodeagent.memory import give_back, keep_free, settle
from nodeagent.messages import (
    TO_COLLECTOR,
    AllLogsTold,
    AskCollector,
    Collecting,
    CollectorCounted,
    CollectorRows,
    FinishLogs,
    FromCollector,
    LogFileClosed,
    LogFileOpened,
    LogFilePutAside,
    LogFileRenamed,
    LogRoomWanted,
    LogSourceGone,
    LogSourceTold,
    StartCollector,
    ToCollector,
)
from nodeagent.proxy import privilege
from nodeagent.pulse import Pulse
from nodeagent.wire import MessageError, Unchecked

LOCK_SECONDS: Final = 0.05
"""Between two looks whether the folder of positions is free."""
ROWS_AT_ONCE: Final = 500
COUNT_SECONDS: Final = 1.0
"""Between two reports of what was counted."""
FREE_BYTES: Final = 16 << 20
"""That are kept for chunks and requests while any come."""
log = logging.getLogger("nodeagent.logs")


def main(end: socket.socket, pulse: Pulse) -> None:
    """Run the collector on its end of the channel until control has it finish. The process's last call."""
    del pulse  # the data plane does not depend on it
    give_way()
    settle()
    keep_free(FREE_BYTES)
    uvloop.run(_collect(end))


async def _collect(end: socket.socket) -> None:
    collector = Collector(asyncio.get_running_loop(), end)
    await collector.done


class Collector:
    """Carries out control's messages; see ``nodeagent.control.log_collector`` for the other side."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: socket.socket) -> None:
        self._loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self._waiting: list[ToCollector] = []
        """What was told before it could begin."""
        self._reading: Intake | None = None
        self._told: StartCollector | None = None
        self._finishing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: Channel[ToCollector, FromCollector] = Channel(
            loop, end, TO_COLLECTOR, heard=self._hear, misunderstood=self._misunderstand, closed=self._orphaned
        )
        loop.add_signal_handler(signal.SIGUSR1, self._told_to_go)
        # the supervisor's to handle, also where a whole group is sent them (Ctrl-C, a closed terminal, systemd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)

    def _hear(self, message: ToCollector) -> None:
        match message:
            case StartCollector() if self._told is None:
                self._told = message
                self._start(self._begin(message))
            case StartCollector():
                self._compare(message)
            case FinishLogs():
                self._start(self._finish(message.seconds))
            case _ if self._reading is None:
                self._waiting.append(message)
            case _:
                self._obey(self._reading, message)

    def _obey(
        self,
        reading: Intake,
        message: LogSourceTold
        | LogFileOpened
        | LogFileRenamed
        | LogRoomWanted
        | LogSourceGone
        | AllLogsTold
        | AskCollector,
    ) -> None:
        match message:
            case LogSourceTold():
                reading.source(from_json(message.source))
            case LogFileOpened():
                reading.add(message)
            case LogFileRenamed():
                reading.tail.named(message.device, message.inode, message.name)
            case LogRoomWanted():
                for each in reading.tail.make_room(message.uid, message.files):
                    self._channel.send(LogFilePutAside(each.inode.device, each.inode.number, each.size, each.modified))
            case LogSourceGone():
                reading.source_gone(message.key, left_out=message.left_out)
            case AllLogsTold():
                reading.all_told(message.keys)
            case AskCollector():
                self._answer(reading, message.number)
            case _:
                assert_never(message)

    def _compare(self, start: StartCollector) -> None:
        """Another control goes by *start*. What it tells next means that, so who was told something else ends: a
        source would go to sinks, or by rules, that are others here.
        """
        if start == self._told or self._finishing:
            return
        log.info("another control goes by other settings of logs; the collector ends, for one that goes by those")
        settings = LogSettings.model_validate(start.settings)
        if self._reading is not None:
            self._reading.streams.stop()
        self._start(self._finish(settings.stop_seconds))

    async def _begin(self, start: StartCollector) -> None:
        privilege.drop(start.supervisor, USER)
        settings = LogSettings.model_validate(start.settings)
        await _locked(settings.state_directory)
        if self._finishing:
            return
        self._reading = reading = Intake(settings, start.node)
        reading.begin(self._start)
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._hear(message)
        self._channel.send(Collecting())
        self._start(self._keep_counting(reading))

    async def _keep_counting(self, reading: Intake) -> None:
        """Tell what was counted, so that a process that dies takes little of it along."""
        busy = False
        while not self._finishing:
            await asyncio.sleep(COUNT_SECONDS)
            counted = reading.counted()
            self._channel.send(counted)
            if busy and not counted.report["counts"]:
                give_back()  # what was needed for chunks and requests
            busy = bool(counted.report["counts"])
            for device, inode in reading.tail.closed():
                self._channel.send(LogFileClosed(device, inode))
            reading.forget()

    async def _finish(self, seconds: float) -> None:
        if self._finishing:
            return
        self._finishing = True
        if self._reading is not None:
            await self._reading.end(seconds)
            self._channel.send(self._reading.counted())
            await asyncio.sleep(0)
        self._end()

    def _answer(self, reading: Intake, number: int) -> None:
        """Tell how each file fares, in parts that fit a packet."""
        self._channel.send(reading.counted())
        rows = reading.rows()
        warnings = tuple(reading.warnings())
        parts = [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)] or [[]]
        for part in parts[:-1]:
            self._channel.send(CollectorRows(number, part, [], (), more=True))
        self._channel.send(CollectorRows(number, parts[-1], reading.streams.rows(), warnings, more=False))

    def _misunderstand(self, error: MessageError) -> None:
        """It ends its channel, by which control, or its successor, kills and replaces it."""
        log.error("control says what no control says (%s); the logs' collector is to be replaced", error)
        self._channel.close()

    def _orphaned(self) -> None:
        """The supervisor is gone too: the kernel kills this process."""
        log.warning("nobody tells the logs' collector anything any more")

    def _told_to_go(self) -> None:
        """The daemon ends, and control is not there to say so."""
        self._start(self._finish(0.5))

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        """What fails here fails for good: control starts another one."""
        self._tasks.discard(task)
        if task.cancelled() or self.done.done():
            return
        error = task.exception()
        if isinstance(error, NodeagentError):
            log.error("the logs' collector ends: %s", error)
        elif error is not None:
            log.error("the logs' collector ends: %s", shown(str(error)), exc_info=error)
        if error is not None:
            self.done.set_exception(SystemExit(1))

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Intake:
    """What reads and delivers, once the folder of positions is there."""

    def __init__(self, settings: LogSettings, node: str) -> None:
        self._settings = settings
        self.streams = FileStreams(settings, node)
        self._sources: dict[str, SourceFacts] = {}
        bounds = TailSettings(line_bytes=settings.limits.line_bytes)
        self.tail = Tail(node, settings.state_directory, self.streams.open, bounds)
        self._counts: CountsTold | None = None
        """None: who is told knows nothing."""
        self._run: asyncio.Task[None] | None = None

    def begin(self, start: Callable[[Coroutine[object, object, None]], None]) -> None:
        """Read and deliver from now on."""
        self.streams.begin(start, self.tail.wake)
        self._run = asyncio.create_task(self.tail.run())
        self._run.add_done_callback(_failed)

    async def end(self, seconds: float) -> None:
        """Read no more, give what is under way so many *seconds*, and save how far all is settled."""
        await self.streams.end(seconds)
        await self.tail.stop()

    def source(self, source: SourceFacts) -> None:
        """*source* is as told from now on."""
        self._sources[source.key] = source
        self.streams.describe(source)

    def add(self, message: LogFileOpened) -> None:
        """A file of a source is there."""
        source = self._sources.get(message.key)
        if source is None:
            os.close(message.file)
            return
        log_source = LogSource(SourceKey(source.key), source.uid, source.kind == "journal")
        self.tail.add(message.file, log_source, message.name, message.start)

    def source_gone(self, key: str, *, left_out: bool) -> None:
        """Nothing more comes of a source; what it has open is read to its end, or dropped where it is *left_out*."""
        if key not in self._sources:
            return
        self.streams.gone(key, left_out=left_out)
        self.tail.leave(SourceKey(key), left_out=left_out)

    def all_told(self, keys: Iterable[str]) -> None:
        """Sources that are not among *keys* are gone, but for those of which that was told; what they have open is
        read to its end, for their files may only have lost their names. Who says so has counted nothing.
        """
        self._counts = None
        told = set(keys)
        for key in self._sources.keys() - told:
            if not self.streams.sources[key].gone:
                self.source_gone(key, left_out=False)
        self.tail.disregard(told)

    def forget(self) -> None:
        """Forget the sources that are gone and have been read to their ends, what was counted, and told, of pods
        that have none, and former sinks' buffers that were removed.
        """
        self.streams.forget_pods()
        self.streams.forget_removed()  # which counts, and so is to be told before its pods are forgotten
        gone = [key for key, each in self.streams.sources.items() if each.gone]
        if not gone:
            return
        open_ones = {str(status.source.key) for status in self.tail.status()}
        for key in gone:
            if key not in open_ones:
                uid = self._sources.pop(key).uid
                if self.streams.forget(key):
                    self.tail.forget_counts(uid)

    def counted(self) -> CollectorCounted:
        """Return what was counted and not told yet."""
        told = self._counts
        self._counts = told or CountsTold()
        counts = (*self.streams.counts(), *tailed(self.streams.pods(), self.tail.counts()))
        return CollectorCounted(self._counts.report(counts), whole=told is None)

    def rows(self) -> list[Unchecked]:
        """Return a row for each file."""
        return [self._row(status) for status in self.tail.status()]

    def _row(self, status: FileStatus) -> Unchecked:
        source = self._sources.get(status.source.key)
        reading = source.reading if source is not None else Reading()
        left_out = self.streams.left_out(status.source.key)
        return {
            "namespace": source.namespace if source is not None else "",
            "pod": source.pod if source is not None else "",
            "container": source.container if source is not None else "",
            "path": source.path if source is not None else "",
            "file": status.name,
            "size": status.size,
            "read": status.read,
            **({} if left_out else {"settled": status.settled}),  # nobody gets what is dropped
            "lagBytes": status.lag_bytes,
            "lagSeconds": status.lag_seconds,
            "state": "left out" if left_out else status.state,
            **self._why(status),
            "parser": reading.parser,
            "multiline": reading.multiline,
            "sinks": list(reading.sinks),
        }

    def _why(self, status: FileStatus) -> dict[str, str]:
        """Return what is not as it should be with a file, in words."""
        dropped = self.streams.over_rate(status.source.key)
        over = f"{dropped} records were dropped, over logs.limits.bytesPerSecondPerPod" if dropped else ""
        out = (
            "the pod does not want it read (any more): what is written to it meanwhile is dropped"
            if self.streams.left_out(status.source.key)
            else ""
        )
        why = "; ".join(each for each in (status.why, over, out) if each)
        return {"why": why} if why else {}

    def warnings(self) -> list[str]:
        """Return, in words, what is wrong."""
        problem = self.tail.problem
        unsaved = [f"logs: positions cannot be written, a restart would send again what came since: {problem}"]
        return [*(unsaved if problem else []), *self.streams.warnings()]


async def _locked(folder: Path) -> int:
    """Wait until *folder* is this process's alone, and return the descriptor that keeps it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    said = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                said = time.monotonic()
                log.info("logs.stateDirectory %s is in use; waiting for its collector to end", folder)
            await asyncio.sleep(LOCK_SECONDS)
            continue
        return descriptor


def _failed(task: asyncio.Task[None]) -> None:
    """The tail has no end of its own: without it this process is of no use."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the tail failed: %s", shown(str(error)), exc_info=error)
        os._exit(1)
