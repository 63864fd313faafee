"""A connection on a port that nobody declared, whose client keeps silent: who speaks first decides
what it is, never the time.

A server that speaks first is no HTTP server, and a client whose first line is no request line is no
HTTP client; until one of them has spoken, what the client says is looked at. What had to go on
before that was certain (a protocol may begin with half a line and wait for an answer to it) is
looked at further (:class:`nodeagent.proxy.tcp.WatchedSide`).
"""

from __future__ import annotations

import asyncio

from nodeagent.proxy.dial import Dialled
from nodeagent.proxy.sniff import FirstLine, Verdict
from nodeagent.proxy.transport import Transport


class FirstWords:
    """The protocol of such a connection until one side has spoken. A line that has begun must end
    within *patience* seconds, and *longest* bytes: HTTP's parser refuses what is longer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport, patience: float, longest: int) -> None:
        self.patience = patience
        self._loop = loop
        self._transport = transport
        self._longest = longest
        self._timer: asyncio.TimerHandle | None = None
        self.line = FirstLine()
        self.early = b""
        self.ended = False
        self.verdict: asyncio.Future[Verdict] = loop.create_future()
        """What the client's words make of the connection; ``tcp`` too when it ends without any."""

    async def decided(self, server: Dialled | None, seconds: float | None = None) -> Verdict:
        """Return what the connection is: as the client's words say, or ``tcp`` when *server* speaks
        or leaves before it, or when *seconds* have passed.
        """
        heard: list[asyncio.Future[Verdict] | asyncio.Future[None]] = [self.verdict]
        if server is not None:
            heard.append(server.heard(self._loop))
        await asyncio.wait(heard, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._settle("tcp")
        return self.verdict.result()

    def _settle(self, verdict: Verdict) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.verdict.done():
            self.verdict.set_result(verdict)
            if not self._transport.is_closing():
                self._transport.pause_reading()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        self.early += data
        if self.verdict.done():
            return
        verdict = self.line.feed(data)
        if verdict != "more":
            self._settle(verdict)
        elif len(self.early) > self._longest:
            self._settle("http")
        elif self._timer is None:
            self._timer = self._loop.call_later(self.patience, self._settle, "unlikely")

    def eof_received(self) -> bool:
        self.ended = True
        self._settle("tcp")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._settle("tcp")

    def pause_writing(self) -> None:
        """Nothing was written yet."""

    def resume_writing(self) -> None:
        """Nothing was written yet."""
