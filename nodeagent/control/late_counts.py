"""What the workers of a daemon count that was succeeded: told to the daemon that has the node, which adds it to its
own metrics. Nobody scrapes the one that drains, and its connections may live for an hour.

Theory of operation
-------------------

Control of the daemon that has the node listens on ``late-counts.sock`` in the runtime directory, from when its ports
are open until the node is another daemon's. Control of one that drains calls there::

    who drains                                           who has the node
       │ LateCounts(version, number, what was counted) ──────▶│ checks it, adds it
       │ ◀───────────────────────────────── CountsTaken(number) │

Told is what was counted since the node is another daemon's and since the last time, every few seconds and at the end,
where there is anything. Until then its own ports told it; the successor's counters began at 0, so that nothing is
counted twice. What is not taken yet stays, summed up: as many series as a store may hold.

One report is under way at a time. It was added exactly where CountsTaken came: of a connection that ends before, the
report was not read, unless its reader has died, whose counters ended with it.

Successive daemons: who has the node is who listens, whoever succeeded whom. One that is succeeded closes its end
first and passes on from then on, what comes of its own workers; those that drained before call its successor. While
nobody listens (the daemon is dead, or of a release without this), they try again, and end when they would have.

Versions: LateCounts and CountsTaken never change; what is in a report is of the version that LateCounts names, and
whoever does not speak it hangs up. Nothing else depends on this connection. Unlike the one by which the node was
handed over it is between controls: a supervisor reads nothing that pods' bytes have had a hand in.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.channel import Channel
from nodeagent.hand_over import COUNTS_SOCKET
from nodeagent.local_listener import LocalListener, calling_uid
from nodeagent.messages import FROM_DRAINING, TO_DRAINING, CountsTaken, LateCounts
from nodeagent.telemetry.late_reports import VERSION, known, reports
from nodeagent.telemetry.store import Store
from nodeagent.wire import MessageError, Unchecked

TELL_SECONDS: Final = 5.0
LAST_SECONDS: Final = 1.0
"""So long the end of a daemon that drains waits until its last counts are taken."""
CALLERS: Final = 32
"""Daemons that drain at the same time and are heard."""
log = logging.getLogger("nodeagent.control")


class NodeCounts:
    """Where the reports of a daemon's workers go: into its store; once the node is another daemon's, to that one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, store: Store) -> None:
        """*folder*: the runtime directory."""
        self._loop = loop
        self._path = folder / COUNTS_SOCKET
        self._store = store
        self._receiver = CountsReceiver(loop, self._path, store)
        self._sender: CountsSender | None = None

    def count(self, report: Unchecked) -> None:
        """Take a worker's *report*."""
        if self._sender is None:
            self._store.merge(report)
        else:
            self._sender.count(report)

    def listen(self) -> None:
        """Add what daemons count that drain beside this one."""
        self._receiver.open()

    def pass_on(self) -> CountsSender:
        """The node is another daemon's: return who tells that one what is counted from now on."""
        self._receiver.close()
        self._sender = CountsSender(self._loop, self._path)
        return self._sender

    def close(self) -> None:
        """Hear nobody any more."""
        self._receiver.close()


class CountsReceiver:
    """The side of the daemon that has the node."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, store: Store) -> None:
        self._loop = loop
        self._path = path
        self._store = store
        self._listener: LocalListener | None = None
        self._callers: set[Channel[LateCounts, CountsTaken]] = set()
        self._said = False
        """It is in the log that somebody cannot be understood."""

    def open(self) -> None:
        """Listen. Where that cannot be, the log says so, and nothing else is lost."""
        try:
            listener = LocalListener(self._path)
        except OSError as error:
            log.error("%s: %s: what daemons count that drain is in no metric", self._path, error.strerror or error)
            return
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Hear nobody any more; what was not taken is not lost."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        while self._callers:
            self._callers.pop().close()

    def _accept(self, listener: LocalListener) -> None:
        end = listener.accept()
        if end is None:
            return
        if len(self._callers) >= CALLERS:
            end.close()
            return
        caller: Channel[LateCounts, CountsTaken] = Channel(
            self._loop,
            end,
            FROM_DRAINING,
            heard=lambda counts: self._take(caller, counts),
            misunderstood=lambda error: self._hang_up(caller, str(error)),
            closed=lambda: self._callers.discard(caller),
        )
        self._callers.add(caller)

    def _take(self, caller: Channel[LateCounts, CountsTaken], counts: LateCounts) -> None:
        if counts.version != VERSION:
            self._hang_up(caller, f"they are of version {counts.version}, spoken is {VERSION}")
            return
        self._store.merge(known(counts.report))
        caller.send(CountsTaken(counts.number))

    def _hang_up(self, caller: Channel[LateCounts, CountsTaken], why: str) -> None:
        """It will call again, for another daemon may have the node then."""
        self._callers.discard(caller)
        caller.close()
        if not self._said:
            self._said = True
            log.warning("what a daemon counts that drains beside this one is in no metric: %s", why)


class CountsSender:
    """The side of a daemon that drains."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop = loop
        self._path = path
        self._counted = Store()
        """Since the last time."""
        self._reports: Iterator[Unchecked] = iter(())
        """What was counted before, and was not told yet."""
        self._report: Unchecked | None = None
        """The one of those that was not taken yet."""
        self._numbers = itertools.count(1)
        self._number = 0
        self._taken: asyncio.Future[bool] | None = None
        self._channel: Channel[CountsTaken, LateCounts] | None = None
        self._turn = asyncio.Lock()

    def count(self, report: Unchecked) -> None:
        """Take a worker's *report*."""
        self._counted.merge(report)

    async def keep_telling(self) -> None:
        """Tell every few seconds what there is, for ever."""
        while True:
            await asyncio.sleep(TELL_SECONDS)
            await self.tell()

    async def tell_the_rest(self) -> None:
        """Tell what there is, while somebody takes it within a bound of time, and hang up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.tell()
        if self._channel is not None:
            self._channel.close()

    async def tell(self) -> None:
        """Tell what was counted since the last time; what nobody takes is told the next time, before anything else."""
        async with self._turn:
            if await self._all_taken():
                self._reports, self._counted = reports(self._counted.held), Store()
                await self._all_taken()

    async def _all_taken(self) -> bool:
        """Say whether everything was taken that is to be told now."""
        while (report := self._next()) is not None:
            if not await self._is_taken(report):
                return False
            self._report = None
        return True

    def _next(self) -> Unchecked | None:
        if self._report is None:
            self._report = next(self._reports, None)
        return self._report

    async def _is_taken(self, report: Unchecked) -> bool:
        channel = self._connected()
        if channel is None:
            return False
        self._number = next(self._numbers)
        self._taken = self._loop.create_future()
        channel.send(LateCounts(VERSION, self._number, report))
        return await self._taken

    def _connected(self) -> Channel[CountsTaken, LateCounts] | None:
        """Return the connection to who has the node; None: nobody listens now."""
        if self._channel is None:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                end.connect(str(self._path))
                if calling_uid(end) != os.getuid():
                    raise PermissionError
            except OSError:
                end.close()
                return None
            self._channel = Channel(
                self._loop, end, TO_DRAINING, heard=self._hear, misunderstood=self._hang_up, closed=self._gone
            )
        return self._channel

    def _hear(self, message: CountsTaken) -> None:
        if message.number == self._number and self._taken is not None and not self._taken.done():
            self._taken.set_result(True)

    def _hang_up(self, error: MessageError) -> None:
        """Who is there says what nobody says: another one may come."""
        if self._channel is not None:
            self._channel.close()
        self._gone()

    def _gone(self) -> None:
        self._channel = None
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(False)
