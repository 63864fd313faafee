"""The side that opens streams of HBONE: few connections to the proxy of one pod of an ambient mesh,
which carry all that one of our pods says to that pod, at whatever port.

A stream is nobody's before the peer has answered it: 200, and it is a connection to the port; else
its status says why not. One that the peer never looked at (it left, or takes no more streams) is
asked for again on another connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from nodeagent.errors import CONNECT_TIMEOUT, HBONE_REFUSED, STREAMS_EXHAUSTED, UPSTREAM_TLS
from nodeagent.proxy.dial import DialError, Dialled
from nodeagent.proxy.hbone.heads import connect_block, status_of
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.shared.client import SharedPool, SharedUpstream
from nodeagent.proxy.shared.lease import Lease
from nodeagent.proxy.shared.link import Link
from nodeagent.proxy.shared.stream import SharedStream
from nodeagent.proxy.transport import Transport
from nodeagent.vocabulary import host_port

MOST_ASKED: Final = 3
"""Times that a stream is asked for."""
UNANSWERED: Final = 0
TAKEN: Final = 200


class LedStream(SharedStream):
    """A stream that was asked for: ``answer`` is its status, UNANSWERED where it ended before."""

    def __init__(self, link: Link, stream: Http2Stream) -> None:
        SharedStream.__init__(self, link, stream, "tcp", link.held)
        self.answer: asyncio.Future[int] = link.context.loop.create_future()

    def answered(self, status: int) -> None:
        """The peer has said *status*, or will say nothing."""
        if not self.answer.done():
            self.answer.set_result(status)

    def lose(self, error: Exception | None) -> None:
        self.answered(UNANSWERED)
        SharedStream.lose(self, error)


class HboneUpstream(SharedUpstream):
    """The protocol of a connection to the proxy of a pod."""

    def lead(self, authority: bytes) -> LedStream:
        """Return a stream that was asked for, to *authority*; what it says meanwhile, a Dialled keeps."""
        stream = self.session.open()
        self.session.send_head(stream, connect_block(authority), ended=False)
        self.soon()
        led = LedStream(self, stream)
        dialled = Dialled()
        dialled.transport = dialled.stream = led
        led.lease = self.lease
        led.protocol = dialled
        self.streams[stream.number] = led
        return led

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        status = status_of(fields)
        if stream.head_read or 100 <= status < 200:
            return
        stream.head_read = True
        led = self.streams.get(stream.number)
        if isinstance(led, LedStream):
            led.answered(status)
        if status != TAKEN:
            self.session.reset(stream, wire.CANCEL)
            if led is not None:
                led.lose(ConnectionResetError(f"the peer's proxy answered {status}"))


class HbonePool(SharedPool):
    """The connections of one of our pods to the proxy of another mesh's pod."""

    async def lead(self, address: str, port: int) -> Dialled:
        """Return a connection to *port* at *address*, the pod's own. Raises DialError."""
        try:
            async with asyncio.timeout(self._context.timeouts.connect):
                return await self._lead(host_port(address, port))
        except TimeoutError:
            raise DialError(CONNECT_TIMEOUT) from None

    async def _lead(self, authority: str) -> Dialled:
        for _ in range(MOST_ASKED):
            link = await self._link("tcp")
            if isinstance(link, Dialled):
                self._refused_until = 0.0  # who comes next shall hear the same
                link.transport.abort()
                raise DialError(UPSTREAM_TLS)
            if not isinstance(link, HboneUpstream):
                break
            led = link.lead(authority.encode())
            dialled = led.protocol
            try:
                status = await led.answer
            except BaseException:
                led.abort()
                raise
            if status == TAKEN:
                assert isinstance(dialled, Dialled), "nobody has used it yet"
                return dialled
            if status != UNANSWERED:
                raise DialError(replace(HBONE_REFUSED, hint=f"{authority}: status {status}: {HBONE_REFUSED.hint}"))
        raise DialError(STREAMS_EXHAUSTED)

    def _possible(self) -> bool:
        return self._context.now >= self._refused_until  # the pod's own mesh has said that it can

    def _not_linked(self, error: DialError) -> None:
        raise error  # none has a connection of its own

    def _linked(self, transport: Transport, lease: Lease) -> SharedUpstream:
        return HboneUpstream(self, self._context, transport, lease)
