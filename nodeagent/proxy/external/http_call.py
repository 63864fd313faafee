"""Single requests to an HTTP service over connections that are kept, by the codec that asks
applications too (``proxy/http1/upstream.py``). A failure is a :class:`CallError`.

A connection carries one request at a time and is used again for whoever may share it
(:class:`Way`): for some minutes, so that a renewed certificate is shown, and only while it idles
for less than half a minute, so that it does not outlive its pod for long.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Final, cast

from nodeagent.errors import UPSTREAM_RESET
from nodeagent.proxy.dial import DialError, Dialled
from nodeagent.proxy.external.bounds import (
    MAX_ANSWER,
    MAX_CONNECTIONS,
    CallError,
    UnreachedError,
    connecting,
    next_way,
)
from nodeagent.proxy.external.model import Resolve, Way
from nodeagent.proxy.http.exchange import Downstream, Exchange, Upstream
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.http1.upstream import Http1Upstream

MAX_HEAD: Final = 64 << 10
"""Bytes of an answer before its body grows."""
IDLE_SECONDS: Final = 30.0
OLDEST_SECONDS: Final = 300.0
_DIRECT: Final = Hop([], single=False)


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """A request, whole."""

    method: bytes
    target: bytes
    authority: bytes
    fields: list[Field]
    """With Host and Content-Length."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """What was said to it."""

    status: int
    fields: list[Field]
    """Those that do not end at this hop."""
    body: bytes
    fault: str = ""
    """Why that is not all of it."""


class HttpConnections:
    """The connections of one worker to a provider; a :class:`~nodeagent.proxy.http.keeper.Keeper`."""

    def __init__(self, service: str, port: int, resolve: Resolve) -> None:
        self._service = service
        self._port = port
        self._resolve = resolve
        self._open: dict[Upstream, tuple[Way, float]] = {}
        """And since when, monotonic seconds."""
        self._idle: list[Upstream] = []
        """The longest idle first."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(self, question: HttpCheck, asker: str, limit: asyncio.Timeout) -> CheckAnswer:
        """Ask for the pod *asker*; at the end of *limit* what came by then is the answer, if that is
        its head at least. Raises CallError.

        Where no connection can be made, or it ends before the answer, the next endpoint is asked once on
        a new one: nobody had looked at the question, or nobody acts on it but the one who asks.
        """
        way = next_way(self._resolve, self._service, self._port, asker, None)
        try:
            answer = await self._attempt(way, question, limit, fresh=False)
        except UnreachedError:
            answer = None
        if answer is None:
            way = next_way(self._resolve, self._service, self._port, asker, way)
            answer = await self._attempt(way, question, limit, fresh=True)
        if answer is None:
            raise CallError("the connection was closed before the answer")
        return answer

    def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for upstream in list(self._open):
            cast(Http1Upstream, upstream).transport.abort()

    # -- what the codec asks of its keeper --

    def release(self, upstream: Upstream) -> None:
        _, since = self._open[upstream]
        now = monotonic()
        if upstream.closes or self._closed or now - since > OLDEST_SECONDS:
            upstream.close()
            return
        upstream.idle_since = now
        self._idle.append(upstream)
        if len(self._idle) > MAX_CONNECTIONS:
            self._idle.pop(0).close()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS / 2, self._sweep)

    def forget(self, upstream: Upstream) -> None:
        self._open.pop(upstream, None)
        if upstream in self._idle:
            self._idle.remove(upstream)

    def retry(self, exchange: Exchange) -> None:
        exchange.refuse(UPSTREAM_RESET)  # whoever asked does so once more

    # -- parts --

    async def _attempt(
        self, way: Way, question: HttpCheck, limit: asyncio.Timeout, *, fresh: bool
    ) -> CheckAnswer | None:
        """Ask once, where *fresh* says so on a new connection; None: it ended before the answer. Raises CallError."""
        kept = None if fresh else self._lent(way)
        upstream = cast(Http1Upstream, kept or await self._connected(way, limit))
        return await self._answer(upstream, question, limit)

    def _lent(self, way: Way) -> Upstream | None:
        """Return a connection by *way* that idles, the last used one; None: there is none."""
        for upstream in reversed(self._idle):
            if self._open[upstream][0] == way:
                self._idle.remove(upstream)
                return upstream
        return None

    async def _connected(self, way: Way, limit: asyncio.Timeout) -> Upstream:
        try:
            async with connecting(limit):
                dialled = await (way.connect("http") if way.connect is not None else _dialled(way))
        except TimeoutError:
            raise UnreachedError("cannot connect: nobody answers") from None
        except DialError as error:
            raise UnreachedError(f"cannot connect: {error.reason.code}") from None
        except OSError as error:
            raise UnreachedError(f"cannot connect: {error.strerror or type(error).__name__}") from None
        if dialled.early or dialled.ended or dialled.lost or self._closed:
            dialled.transport.abort()
            raise CallError("the service spoke before it was asked, or closed the connection")
        upstream = Http1Upstream(self, None, MAX_HEAD)
        upstream.attach(dialled.transport)
        dialled.transport.set_protocol(upstream)
        self._open[upstream] = (way, monotonic())
        return upstream

    async def _answer(self, upstream: Http1Upstream, question: HttpCheck, limit: asyncio.Timeout) -> CheckAnswer | None:
        """Ask on *upstream*; return the answer, None where the connection ended before it. Raises CallError."""
        told = _Told()
        exchange = Exchange(told, question.method, question.target, question.authority, question.fields, perf_counter())
        exchange.route = _DIRECT
        exchange.request_complete = True
        exchange.tries = 1  # whether it is asked again is decided here
        if question.body:
            exchange.length = len(question.body)
            exchange.pending = [question.body]
        upstream.ask(exchange)
        try:
            await told.ready
        except asyncio.CancelledError:
            upstream.abandon(exchange)
            if not (told.status or _refuses(upstream.said)) or not limit.expired():
                raise
            told.fault = "it was not whole in time"
        if told.status:
            return CheckAnswer(told.status, told.fields, b"".join(told.pieces), told.fault)
        if _refuses(upstream.said):
            return CheckAnswer(upstream.said, [], b"", told.fault or "its head is not valid HTTP/1.1, too long or cut")
        if exchange.reason is UPSTREAM_RESET:
            return None
        raise CallError("the answer is not valid HTTP/1.1")

    def _sweep(self) -> None:
        """Close what idled too long."""
        self._timer = None
        before = monotonic() - IDLE_SECONDS
        stale = [upstream for upstream in self._idle if upstream.idle_since < before]
        for upstream in stale:
            self._idle.remove(upstream)
            upstream.close()
        if self._idle:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS / 2, self._sweep)


class _Told(Downstream):
    """The half that keeps what it is told of one answer."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.fields: list[Field] = []
        self.pieces: list[bytes] = []
        self.fault = ""
        self._size = 0

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        if exchange.reason is not None:
            return  # not the service's answer
        exchange.begins(status, fields)
        self.status = status
        self.fields = fields
        if length > MAX_ANSWER:
            self._too_long(exchange)

    def data(self, exchange: Exchange, piece: bytes) -> None:
        if exchange.reason is not None or self.ready.done():
            return
        self._size += len(piece)
        if self._size > MAX_ANSWER:
            self._too_long(exchange)
        else:
            self.pieces.append(piece)

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        exchange.ends([])
        self._done()

    def cut(self, exchange: Exchange) -> None:
        self.fault = "the connection was closed before its end"
        self._done()

    def _too_long(self, exchange: Exchange) -> None:
        self.fault = f"it is longer than {MAX_ANSWER} bytes"
        self.pieces.clear()
        if exchange.upstream is not None:
            exchange.upstream.abandon(exchange)
        self._done()

    def _done(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        pass

    def flush(self, exchange: Exchange) -> None:
        pass

    def pause(self, exchange: Exchange, why: str) -> None:
        pass  # the question is in memory whole

    def resume(self, exchange: Exchange, why: str) -> None:
        pass

    def elsewhere(self, exchange: Exchange) -> bool:
        return False


def _refuses(status: int) -> bool:
    """Say whether an answer that begins with *status* is a no, whatever follows."""
    return status > 200 and not 500 <= status <= 599


async def _dialled(way: Way) -> Dialled:
    """Return a plain connection from the node. Raises OSError."""
    return (await asyncio.get_running_loop().create_connection(Dialled, way.address, way.port))[1]
