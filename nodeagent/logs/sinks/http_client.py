"""POSTs over connections that are kept, to whichever of several servers answers.

aiohttp brings 11.5 MB to a process that has not got it; this parses by httptools (0.3 MB), as the
rest of the daemon does. An answer may be torn, slow, endless or nonsense: each of these is a
:class:`SinkError`, and the connection is not used again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import httptools

from nodeagent.logs.sinks.names import ServerNames
from nodeagent.logs.sinks.secrets import Authorization, ClientTls, SinkError, readable
from nodeagent.vocabulary import host_port

MAX_ANSWER: Final = 16 << 20
"""Bytes of an answer's body: one that is longer is told as :class:`AnswerTooLong`."""
MAX_HEAD: Final = 64 << 10
"""Bytes before a body."""
CONNECT_SECONDS: Final = 10.0
PIECE: Final = 128 << 10
"""Bytes that are written at once: where the kernel does not preempt itself (CONFIG_PREEMPT_NONE) nobody else has the
processor until a write ends, and one of 1 MiB takes a quarter of a millisecond.
"""
_CHUNK: Final = 64 << 10


class AnswerTooLong(SinkError):
    """The answer is longer than is read; a smaller request has a shorter one."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server answered."""

    status: int
    body: bytes
    retry_after: float | None
    """Seconds that it asks to wait."""


@dataclass(frozen=True, slots=True)
class _Server:
    shown: str
    host: str
    port: int
    authority: str
    path: str
    tls: bool


def _server(url: str) -> _Server:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if tls else 80)
    return _Server(url, host, port, host_port(host, port), parts.path.rstrip("/"), tls)


class HttpClient:
    """One sink's connections. Servers are taken in turn: the next one, once one did not answer."""

    def __init__(self, urls: Sequence[str], tls: ClientTls, authorization: Authorization, timeout: float) -> None:
        self._servers = [_server(url) for url in urls]
        self._tls = tls
        self._authorization = authorization
        self._timeout = timeout
        self._names = ServerNames()
        self._at = 0
        self._idle: dict[_Server, list[_HttpConnection]] = {}

    async def post(self, path: str, headers: Mapping[str, str], body: bytes, method: str = "POST") -> HttpAnswer:
        """Send *body* to *path* behind the URL's own, and return what is answered within the timeout. Raises
        SinkError.
        """
        at = self._at
        server = self._servers[at % len(self._servers)]
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._exchange(server, self._head(server, method, path, headers, len(body)), body)
        except (OSError, UnicodeError, SinkError) as error:
            self._next(at)
            if isinstance(error, AnswerTooLong):
                raise
            raise SinkError(f"{server.shown}: {readable(error)}") from None
        if answer.status >= 500 or answer.status == 429:
            self._next(at)
        return answer

    async def close(self) -> None:
        """Close what is open."""
        for connections in self._idle.values():
            for each in connections:
                each.close()
        self._idle.clear()

    def _next(self, at: int) -> None:
        # Of several requests that fail together the first moves on.
        if self._at == at:
            self._at += 1

    def _head(self, server: _Server, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        lines = [
            f"{method} {server.path}{path} HTTP/1.1",
            f"Host: {server.authority}",
            "User-Agent: nodeagent",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if value := self._authorization.value():
            lines.append(f"Authorization: {value}")
        return "\r\n".join([*lines, "", ""]).encode("utf-8")

    async def _exchange(self, server: _Server, head: bytes, body: bytes) -> HttpAnswer:
        idle = self._idle.setdefault(server, [])
        while idle:
            connection = idle.pop()
            try:
                return await self._over(server, connection, head, body)
            except _ClosedWhileIdle:
                continue  # it was closed before it said anything: the others were made before, or are as good
        try:
            return await self._over(server, await self._dial(server), head, body)
        except _ClosedWhileIdle:
            raise SinkError("it closes connections without an answer; is this its port, and http or https?") from None

    async def _over(self, server: _Server, connection: _HttpConnection, head: bytes, body: bytes) -> HttpAnswer:
        keep = False
        try:
            answer, keep = await connection.exchange(head, body)
        finally:
            if keep:
                self._idle.setdefault(server, []).append(connection)
            else:
                connection.close()
        return answer

    async def _dial(self, server: _Server) -> _HttpConnection:
        context: ssl.SSLContext | None = None
        name: str | None = None
        if server.tls:
            context = self._tls.context()
            name = self._tls.server_name or server.host
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await self._names.connect(
                server.host,
                lambda address: asyncio.open_connection(
                    address, server.port, ssl=context, server_hostname=name, limit=_CHUNK
                ),
            )
        return _HttpConnection(reader, writer)


class _ClosedWhileIdle(Exception):
    """Before a byte of the answer."""


class _HttpConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def close(self) -> None:
        self._writer.transport.abort()

    async def exchange(self, head: bytes, body: bytes) -> tuple[HttpAnswer, bool]:
        """Return the answer, and whether the connection may be used again."""
        read = _Reading()
        sending = asyncio.ensure_future(self._send(head, body))
        try:
            while not read.complete:
                # A server may answer, and refuse, before it has read all: sending goes on beside.
                data = await self._receive(read)
                if not data:
                    read.end_of_stream()
                    break
                read.feed(data)
        finally:
            whole = sending.done() and not sending.cancelled() and sending.exception() is None
            sending.cancel()
            read.end()
            await asyncio.gather(sending, return_exceptions=True)
        return read.answer(), read.keep and whole

    async def _send(self, head: bytes, body: bytes) -> None:
        self._writer.write(head)
        whole = memoryview(body)
        for at in range(0, len(whole), PIECE):
            self._writer.write(whole[at : at + PIECE])
            await self._writer.drain()
            await asyncio.sleep(0)  # uvloop writes once a turn of the loop, all that it has until then

    async def _receive(self, read: _Reading) -> bytes:
        try:
            data = await self._reader.read(_CHUNK)
        except (ConnectionError, ssl.SSLError):
            if not read.begun:
                raise _ClosedWhileIdle from None
            raise
        if not data and not read.begun:
            raise _ClosedWhileIdle
        return data


def _seconds(retry_after: bytes, date: bytes) -> float | None:
    """Return the seconds that *retry_after* asks for; a time counts from the server's own *date*, whatever its clock
    (RFC 9110, section 10.2.3). None: nothing is asked.
    """
    if retry_after.isdigit():
        return float(retry_after[:6])
    try:
        until = parsedate_to_datetime(retry_after.decode("ascii"))
        return max(0.0, (until - parsedate_to_datetime(date.decode("ascii"))).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class _Reading:
    """What httptools tells of an answer."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._bytes = 0
        self._head = 0
        self._in_body = False
        self._framed = False
        self._retry_after = b""
        self._date = b""
        self._status = 0
        self.begun = False
        self.complete = False
        self.keep = False

    def feed(self, data: bytes) -> None:
        self.begun = True
        if not self._in_body:
            self._head += len(data)
        if self._head > MAX_HEAD + _CHUNK:
            raise SinkError(f"its answer's head has more than {MAX_HEAD} bytes")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ if isinstance(error.__context__, SinkError) else SinkError(str(error)) from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise SinkError("what it answers is not HTTP/1.1; is this its port, and http or https?") from None

    def end_of_stream(self) -> None:
        """The server has closed: where nothing says how long the answer is, it is whole (RFC 9112, section 6.3)."""
        self.complete = self._in_body and not self._framed

    def end(self) -> None:
        """Nothing is fed any more: the parser, which refers to this, goes at once, not when cycles are looked for."""
        del self._parser

    def answer(self) -> HttpAnswer:
        if not self.complete:
            raise SinkError("it closed the connection within its answer")
        return HttpAnswer(self._status, b"".join(self._body), _seconds(self._retry_after, self._date))

    def on_message_begin(self) -> None:
        if self.complete:
            raise SinkError("it answers more than it was asked")
        self._framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length":
                self._framed = True
            case b"transfer-encoding":
                self._framed = self._framed or b"chunked" in value.lower()
            case b"retry-after":
                self._retry_after = value
            case b"date":
                self._date = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._in_body = True

    def on_body(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > MAX_ANSWER:
            raise AnswerTooLong(f"its answer has more than {MAX_ANSWER} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._status < 200:
            # An interim answer (100): the real one follows.
            self._in_body = False
            return
        self.complete = True
        self.keep = self._parser.should_keep_alive()
