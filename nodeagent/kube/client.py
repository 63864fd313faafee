"""Asks Kubernetes' API over HTTP/1.1, with the parser that the agent has anyway: a generated client
would double its memory (79 MB beside 39), and a general one adds 8 MB of imports.

A watch has a connection for itself. Of the others the last one may stay open for the next request,
for a while: a connection costs ten times as much as what is asked over it. Only what may be asked
twice goes over one that was left open, since the server may have closed it by then. It is not asked to
close any: what comes together with the end of a TLS connection can be lost by a reader that is slow
just then. Redirects are not followed. What the server says is bounded, in time and bytes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httptools
import orjson

from nodeagent import __version__
from nodeagent.kube import shallow
from nodeagent.kube.access import Access, ApiError, KubeObject
from nodeagent.vocabulary import host_port

JSON: Final = "application/json"
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML."""
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
"""Of Kubernetes' own kinds; who serves others answers in JSON."""
MAX_ANSWER: Final = 32 << 20
MAX_LINE: Final = 16 << 20
"""Of one event of a watch: etcd takes no object above 1.5 MiB, and Go writes ``<``, ``>`` and ``&`` as six
bytes each.
"""
REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
BEGIN_SECONDS: Final = 10.0
"""For the head of an answer that then takes as long as it likes."""
OLDEST_SECONDS: Final = 300.0
"""After which a connection is not used again: the next one may come to another API server."""
_TWICE: Final = frozenset({"GET", "PATCH"})
"""Methods of what may be asked twice here: patches say how the object shall be, or of which version it was."""
_TIMED_OUT: Final = 408
"""What may have been said of a connection that was left open, not of the request."""
_READ: Final = 1 << 16
_QUIET_SECONDS: Final = 15
"""After which a connection that says nothing is probed by the kernel."""
_PROBES: Final = 3
_LOST_MILLISECONDS: Final = 30_000
"""For which what was sent may stay unacknowledged."""


class AnswerTooLargeError(ApiError):
    """An answer has more than MAX_ANSWER bytes."""


class _BrokenError(ApiError):
    """A connection ended before its answer did."""


class LateAnswerError(ApiError):
    """Whoever took the request has not answered it in time."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: bytes = b""
    content_type: str = JSON
    accepted: str = JSON


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    until: float
    """When it is too old to be used again, by the loop's clock."""

    def is_open(self, now: float) -> bool:
        """Say whether it may be used again, as far as can be seen from here."""
        return now < self.until and not self.reader.at_eof() and not self.writer.is_closing()

    def close(self) -> None:
        self.writer.transport.abort()


class KubeClient:
    """Asks the API server that *access* leads to."""

    def __init__(self, access: Access, *, seconds: float = REQUEST_SECONDS, keeps: bool = False) -> None:
        """*seconds*: what a whole request may take, but for :meth:`lines`. *keeps*: a connection stays
        open for the next request, until :meth:`close`.
        """
        self._access = access
        self._seconds = seconds
        self._keeps = keeps
        self._kept: _Connection | None = None
        """One that the last request left open."""
        self.streams = True
        """The server can list by a stream (``watch.py``); who learns otherwise says so here, for all."""
        parts = urlsplit(access.server)
        self._host = parts.hostname or ""
        self._port = parts.port or 443
        self._prefix = parts.path.rstrip("/")

    async def get(self, path: str) -> KubeObject:
        """Return the object at *path*. Raises ApiError with the status that the server answered."""
        return await self.ask("GET", path)

    async def post(self, path: str, document: Mapping[str, object]) -> KubeObject:
        """Make *document* in the collection *path*. Raises ApiError; status 409: it is there."""
        return await self.ask("POST", path, document)

    async def put(self, path: str, document: Mapping[str, object]) -> KubeObject:
        """Replace the object at *path*. Raises ApiError; status 409: somebody else has changed it meanwhile."""
        return await self.ask("PUT", path, document)

    async def patch(self, path: str, patch: object, content_type: str = STRATEGIC_MERGE) -> KubeObject:
        """Apply *patch*, of *content_type*, and return the object. Raises ApiError; status 409:
        somebody else has changed it meanwhile.
        """
        return await self.ask("PATCH", path, patch, content_type)

    async def delete(self, path: str) -> KubeObject:
        """Remove the object at *path*. Raises ApiError; status 404: it is not there."""
        return await self.ask("DELETE", path)

    async def ask(self, method: str, path: str, body: object = None, content_type: str = JSON) -> KubeObject:
        """Return the object that the server answers. Raises ApiError."""
        status, content = await self._whole(method, path, body, content_type, JSON)
        return as_document(f"{method} {self._url(path)}", content, status)

    async def content(self, path: str, accepted: str) -> bytes:
        """Return what is at *path* in one of the forms *accepted*, as the header Accept has them. Raises ApiError."""
        status, content = await self._whole("GET", path, None, JSON, accepted)
        if status >= 300:
            as_document(f"GET {self._url(path)}", content, status)
        return content

    async def _whole(self, method: str, path: str, body: object, content_type: str, accepted: str) -> tuple[int, bytes]:
        request = _Request(method, path, b"" if body is None else orjson.dumps(body), content_type, accepted)
        try:
            async with asyncio.timeout(self._seconds):
                kept = self._take() if method in _TWICE else None
                if kept is not None:
                    with suppress(_BrokenError):
                        status, content = await self._exchanged(request, kept)
                        if status != _TIMED_OUT:
                            return status, content
                return await self._exchanged(request, None)
        except TimeoutError:
            raise LateAnswerError(f"{method} {self._url(path)}: no whole answer within {self._seconds:g} s") from None

    async def _exchanged(self, request: _Request, kept: _Connection | None) -> tuple[int, bytes]:
        content = bytearray()
        async with self._answer(request, kept) as answer:
            async for piece in answer.pieces():
                content += piece
                if len(content) > MAX_ANSWER:
                    whose = f"{request.method} {self._url(request.path)}"
                    raise AnswerTooLargeError(f"{whose}: the answer has more than {MAX_ANSWER} bytes")
        return answer.status, bytes(content)

    def _take(self) -> _Connection | None:
        """Return the connection that was left open, if it is still."""
        kept = self._kept
        self._kept = None
        if kept is None or kept.is_open(asyncio.get_running_loop().time()):
            return kept
        kept.close()
        return None

    def _keep(self, connection: _Connection) -> None:
        """Leave *connection* open for the next request."""
        self.close()
        self._kept = connection

    def close(self) -> None:
        """Close what was left open."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def lines(self, path: str, granted: Callable[[], None] | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the answer to GET *path*, as they come, until it ends: a watch. An empty
        line stands for one of more than MAX_LINE bytes; others that are empty are left out. Close the
        iterator (``contextlib.aclosing``) to leave it early. *granted* is called when the server
        has agreed, which may be long before it has anything to say. Raises ApiError.
        """
        async with self._answer(_Request("GET", path), None) as answer:
            if answer.status >= 300:
                as_document(f"GET {self._url(path)}", await answer.beginning(), answer.status)
            if granted is not None:
                granted()
            rest = bytearray()
            is_too_long = False
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    first, *others = piece.split(b"\n")
                    rest += first
                    for begun in others:
                        if is_too_long or rest:
                            yield b"" if is_too_long else bytes(rest)
                        is_too_long = False
                        rest = bytearray(begun)
                    if len(rest) > MAX_LINE:
                        is_too_long = True
                        rest.clear()

    def _url(self, path: str) -> str:
        return self._access.server + path

    @asynccontextmanager
    async def _answer(self, request: _Request, kept: _Connection | None) -> AsyncIterator[_Answer]:
        """Send *request*, over *kept* or a new connection, and give its answer, of which the head has come."""
        whose = f"{request.method} {self._url(request.path)}"
        connection = kept or await self._connect(whose)
        try:
            connection.writer.write(self._head(request) + request.body)
            answer = _Answer(whose, connection.reader)
            try:
                async with asyncio.timeout(BEGIN_SECONDS):
                    await answer.begin()
            except TimeoutError:
                raise LateAnswerError(f"{whose}: no answer within {BEGIN_SECONDS:g} s") from None
            yield answer
            if self._keeps and answer.leaves_open():
                self._keep(connection)
        except OSError as error:
            raise _BrokenError(f"{whose}: the connection broke: {error}") from None
        finally:
            if connection is not self._kept:
                connection.close()

    async def _connect(self, whose: str) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._host,
                    self._port,
                    ssl=self._access.context,
                    server_hostname=self._access.server_name or self._host,
                )
        except TimeoutError:
            why = f"no connection within {CONNECT_SECONDS:g} s: is the API server reachable?"
            raise ApiError(f"{whose}: {why}{self._named()}") from None
        except ssl.SSLError as error:
            self._access.renew()
            raise ApiError(
                f"{whose}: TLS failed: {error}; is the server's certificate for "
                f"{self._access.server_name or self._host}, and signed by the cluster's authority?"
            ) from None
        except (OSError, UnicodeError) as error:
            raise ApiError(f"{whose}: cannot connect: {_why(error)}: is the API server up?{self._named()}") from None
        _watch_over(writer.get_extra_info("socket"))
        return _Connection(reader, writer, asyncio.get_running_loop().time() + OLDEST_SECONDS)

    def _named(self) -> str:
        """Say what names the server, where that is known."""
        return f" It is named by {self._access.named_by}" if self._access.named_by else ""

    def _head(self, request: _Request) -> bytes:
        fields = {
            "Host": host_port(self._host, self._port),
            "Accept": request.accepted,
            "Accept-Encoding": "identity",
            "User-Agent": f"nodeagent/{__version__}",
            **self._access.headers(),
        }
        if request.body:
            fields |= {"Content-Type": request.content_type, "Content-Length": str(len(request.body))}
        first = f"{request.method} {self._prefix}{request.path} HTTP/1.1"
        lines = [first, *(f"{name}: {value}" for name, value in fields.items())]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def _why(error: OSError | UnicodeError) -> str:
    """Return why there is no connection, in the system's words: asyncio's own hide them behind the address."""
    if isinstance(error, ConnectionError) and error.errno is not None:
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _Answer:
    """A response, as httptools' parser reports it."""

    def __init__(self, whose: str, reader: asyncio.StreamReader) -> None:
        self.status = 0
        self._whose = whose
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._begun = False
        self._finished = False
        self._messages = 0
        self._is_last = True

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_headers_complete(self) -> None:
        self._begun = True
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._finished = True
        self._is_last = not self._parser.should_keep_alive()  # that is known here alone

    def leaves_open(self) -> bool:
        """Say whether the connection is good for another request: the response has ended, nothing came
        behind it, and the server will not close it for that.
        """
        return self._finished and self._messages == 1 and not self._is_last

    async def begin(self) -> None:
        """Wait for the response's head. Raises ApiError."""
        while not self._begun:
            await self._feed()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes. Raises ApiError where it is cut off."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._finished:
                return
            await self._feed()

    async def beginning(self) -> bytes:
        """Return the body, of which no more than 64 KiB are waited for. Raises ApiError."""
        found = bytearray()
        async with asyncio.timeout(BEGIN_SECONDS), aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                found += piece
                if len(found) > _READ:
                    break
        return bytes(found)

    async def _feed(self) -> None:
        data = await self._reader.read(_READ)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._finished:
                raise ApiError(f"{self._whose}: the answer is not valid HTTP") from None
        if not data and not self._finished:
            raise _BrokenError(f"{self._whose}: the answer is cut off")


def _watch_over(connection: socket.socket) -> None:
    """Have the kernel end *connection* when the other end is gone without a word: nothing but that
    ends a watch that says nothing.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _QUIET_SECONDS // _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST_MILLISECONDS)


def as_document(whose: str, content: bytes, status: int = 200) -> KubeObject:
    """Return the object that *content* is, the answer with *status* to *whose* request. Raises ApiError."""
    try:
        document = shallow.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(f"{whose}: status {status}, and no JSON object", status)
    if status >= 300:
        message = str(document.get("message"))[:300]
        raise ApiError(f"{whose}: status {status}: {message}{_hint(status, message)}", status)
    return document


UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_ALLOWED: Final = 'is forbidden: User "'
"""What the API server says of a right that is missing; a quota and who else decides of objects refuse otherwise."""


def _hint(status: int, message: str) -> str:
    """Return what to look at where the server takes nobody, or not this one: what admission refuses has
    status 403 as well (a quota, a namespace that is being removed).
    """
    if status == UNAUTHORIZED:
        return ": the token or client certificate is not accepted: has it ended, is it of this cluster?"
    if status == FORBIDDEN and NOT_ALLOWED in message:
        return ": see the RBAC rules that daemonset/base/rbac.yaml gives"
    return ""
