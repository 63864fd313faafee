"""When a client's connection is read, and how much of it in one turn of the loop: it may send
thousands of requests at once, in a single read, and others want the loop too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from nodeagent.proxy.http1.requests import RequestReader
from nodeagent.proxy.transport import Transport

REQUESTS_A_TURN: Final = 16
PORTION_BYTES: Final = 2048
LARGEST_PORTION: Final = 32768
"""In a body that goes on, portions grow."""


class Turns:
    """Parses what one client sent in portions, counts the requests that begin meanwhile, and stops
    reading while there is a cause for that.
    """

    __slots__ = ("_loop", "_parse", "_reader", "_transport", "begun", "late", "paused")

    def __init__(
        self,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        reader: RequestReader,
        parse: Callable[[bytes], None],
    ) -> None:
        """*parse* parses a portion; nothing is given to it any more once *reader* is ``closed``."""
        self._transport = transport
        self._loop = loop
        self._reader = reader
        self._parse = parse
        self.begun = 0
        self.late = b""
        """What was read and is not parsed yet."""
        self.paused: set[str] = set()
        """Why nothing is read."""

    def come(self, data: bytes) -> None:
        """Take *data* behind what is late, and parse what this turn may."""
        self.late = self.late + data if self.late else data
        if "turn" not in self.paused:
            self._work()

    def pause(self, why: str) -> None:
        """Stop reading until *why*, and every other cause, is gone."""
        if not self.paused:
            self._transport.pause_reading()
        self.paused.add(why)

    def resume(self, why: str) -> None:
        """*why* is no cause any more."""
        if why not in self.paused:
            return
        self.paused.discard(why)
        if self.paused or self._transport.is_closing():
            return
        if self.late and not self._reader.closed:
            # The rest is parsed in the loop's next turn; reading stays paused until then.
            self.paused.add("turn")
            self._loop.call_soon(self._next)
        else:
            self._transport.resume_reading()

    def _work(self) -> None:
        size = PORTION_BYTES
        self.begun = 0
        while self.late and not self.paused and not self._reader.closed:
            if self.begun >= REQUESTS_A_TURN:
                self.pause("turn")
                self._loop.call_soon(self._next)
                return
            portion = self.late[:size]
            self.late = self.late[size:]
            begun = self.begun
            self._parse(portion)
            size = PORTION_BYTES if self.begun > begun else min(2 * size, LARGEST_PORTION)

    def _next(self) -> None:
        self.paused.discard("turn")
        if self.paused:
            return  # resume() goes on
        self._work()
        if not self.paused and not self._transport.is_closing():
            self._transport.resume_reading()
