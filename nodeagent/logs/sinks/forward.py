"""Fluentd and Fluent Bit, by the forward protocol, version 1: one message a tag, packed (and compressed),
each acknowledged by its chunk's id. All of a request are sent at once.

The protocol has no ids of records: what is sent again, for its acknowledgement was lost, comes twice.
A server with a shared key greets (HELO); both sides prove that they know it before a record is sent.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets as random_bytes
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from itertools import chain
from typing import Final
from urllib.parse import urlsplit

import orjson
import ormsgpack
from isal import igzip

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.names import ServerNames
from nodeagent.logs.sinks.secrets import ClientTls, MadeOfFiles, SinkError, readable, secret
from nodeagent.logs.sinks.settings import ForwardSettings
from nodeagent.logs.sinks.sink import Outcome, Payload, Taken, Untaken
from nodeagent.logs.sinks.times import nanoseconds, within

CONNECT_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 << 10
"""Bytes of a message from the server."""
GZIP_LEVEL: Final = 1
_EVENT_TIME: Final = 0
_LATEST: Final = (1 << 32) * 1_000_000_000 - 1
"""Nanoseconds since 1970, whose seconds have 32 bits: in the year 2106."""


class ForwardSink:
    """A forward input, or several of which one is used."""

    ordered: Final = True

    def __init__(self, name: str, settings: ForwardSettings, timeout: float) -> None:
        self.name: Final = name
        self._settings = settings
        self._timeout = timeout
        self._tls = ClientTls(settings.tls) if settings.tls else None
        paths = [each for each in (settings.shared_key_file, settings.password_file) if each]
        self._secrets = MadeOfFiles(paths, lambda: [secret(each) for each in paths])
        self._names = ServerNames()
        self._at = 0
        self._connection: _ForwardConnection | None = None

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as a message for each of its tags."""
        return Payload(batch, [self._message(tag, parts) for tag, parts in _by_tag(batch).items()])

    async def send(self, payload: Payload) -> Outcome:
        """Send the messages, and wait for their acknowledgements."""
        acknowledged: set[int] = set()
        address = self._settings.addresses[self._at % len(self._settings.addresses)]
        try:
            async with asyncio.timeout(self._timeout):
                async for number in self._acknowledged(address, list(map(bytes, payload.body))):
                    acknowledged.add(number)
        except (OSError, UnicodeError, SinkError) as error:
            await self.close()
            self._at += 1
            why = f"{address}: {readable(error)}"
            if not acknowledged:
                return Untaken(why)
            return Taken(again=_numbers(payload.batch, acknowledged), why=why)
        except BaseException:
            await self.close()
            raise
        return Taken()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _message(self, tag: str, parts: Sequence[LogRecords]) -> bytes:
        packed = b"".join(chain.from_iterable(map(_entries, parts)))
        chunk = base64.b64encode(hashlib.blake2b(packed, digest_size=16).digest()).decode()
        options: dict[str, object] = {"chunk": chunk, "size": sum(map(len, parts))}
        if self._settings.gzip:
            packed = igzip.compress(packed, compresslevel=GZIP_LEVEL)
            options["compressed"] = "gzip"
        return ormsgpack.packb([tag, packed, options])

    async def _acknowledged(self, address: str, messages: Sequence[bytes]) -> AsyncIterator[int]:
        """Send *messages*, and yield the number of each that is acknowledged. Raises OSError and SinkError."""
        connection, answer = await self._first_answer(address, messages)
        # The chunk's id is within the message.
        waiting = {number: ormsgpack.unpackb(message)[2]["chunk"] for number, message in enumerate(messages)}
        while True:
            chunk = answer.get("ack") if isinstance(answer, Mapping) else None
            number = next((each for each, expected in waiting.items() if expected == chunk), None)
            if number is None:
                raise SinkError("it acknowledges something else; is this a forward input with require_ack_response?")
            del waiting[number]
            yield number
            if not waiting:
                return
            answer = await connection.next()

    async def _first_answer(self, address: str, messages: Sequence[bytes]) -> tuple[_ForwardConnection, object]:
        """Return what is answered first to *messages*, and the connection: another one where that which was kept turns
        out to have been closed while nothing was sent.
        """
        if (kept := self._connection) is not None:
            with suppress(ConnectionError, _Closed):
                kept.send(messages)
                return kept, await kept.next()
            await self.close()
        made = self._connection = await self._connect(address)
        made.send(messages)
        return made, await made.next()

    async def _connect(self, address: str) -> _ForwardConnection:
        parts = urlsplit(f"//{address}")
        keys = self._secrets.get() if self._settings.shared_key_file else []
        context = self._tls.context() if self._tls else None
        host = parts.hostname or ""
        name = (self._tls.server_name or host) if self._tls else None
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await self._names.connect(
                host, lambda address: asyncio.open_connection(address, parts.port, ssl=context, server_hostname=name)
            )
            connection = _ForwardConnection(reader, writer)
            try:
                if keys:
                    await _introduce(connection, keys[0], self._settings.user, keys[1] if len(keys) > 1 else "")
            except BaseException:
                connection.close()
                raise
        return connection


class _Closed(SinkError):
    """The server closed the connection where an answer was due."""


class _ForwardConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._received = b""
        """What is no whole message yet."""

    def close(self) -> None:
        self._writer.transport.abort()

    def send(self, messages: Sequence[bytes]) -> None:
        """Send *messages*; what the network does not take at once goes while answers are waited for. Raises _Closed."""
        if self._writer.transport.is_closing():
            raise _Closed("the connection was lost before anything was sent")  # uvloop's would raise RuntimeError
        self._writer.writelines(messages)

    async def next(self) -> object:
        """Return the server's next message. Raises OSError and SinkError."""
        while len(self._received) < MAX_ANSWER:
            try:
                message, self._received = first_message(self._received)
            except ormsgpack.MsgpackDecodeError:
                more = await self._reader.read(MAX_ANSWER)
                if not more:
                    raise _Closed(
                        "it closed the connection without an acknowledgement; does it want a shared key or TLS?"
                    ) from None
                self._received += more
            else:
                return message
        raise SinkError(f"its answer has more than {MAX_ANSWER} bytes, or is not MessagePack")


def first_message(received: bytes) -> tuple[object, bytes]:
    """Return the value that *received* begins with, and what follows it. Raises MsgpackDecodeError: it is not whole."""
    message = ormsgpack.unpackb(received)
    # The library does not say where it ends: most often where it would if it were packed here, the shortest way.
    for end in range(len(ormsgpack.packb(message)), len(received)):
        with suppress(ormsgpack.MsgpackDecodeError):
            ormsgpack.unpackb(received[:end])
            return message, received[end:]
    return message, b""


def _by_tag(batch: Sequence[LogRecords]) -> dict[str, list[LogRecords]]:
    """Return *batch* by tag, in order within each."""
    parts: dict[str, list[LogRecords]] = {}
    for records in batch:
        parts.setdefault(records.origin.tag, []).append(records)
    return parts


def _numbers(batch: Sequence[LogRecords], acknowledged: Set[int]) -> list[int]:
    """Return which records of *batch*, numbered through all of it, are in none of its tags of these numbers."""
    left = {tag for number, tag in enumerate(_by_tag(batch)) if number not in acknowledged}
    first = 0
    numbers: list[int] = []
    for records in batch:
        if records.origin.tag in left:
            numbers += range(first, first + len(records))
        first += len(records)
    return numbers


def _entries(records: LogRecords) -> Iterator[bytes]:
    """Yield *records* as entries of a message."""
    members = orjson.loads(b"{%b}" % records.origin.members)
    columns = zip(records.times, records.streams, records.objects, strict=True)
    for time, stream, written in columns:
        seconds, nanos = divmod(within(nanoseconds(time), _LATEST), 1_000_000_000)
        stamp = ormsgpack.Ext(_EVENT_TIME, seconds.to_bytes(4) + nanos.to_bytes(4))
        record = ({"stream": stream.decode()} if stream else {}) | members
        yield _entry(stamp, record, written)


def _entry(stamp: ormsgpack.Ext, record: Mapping[str, object], written: bytes) -> bytes:
    """Return an entry of *record* with the members of the object *written*, or with its text where MessagePack has no
    room for them: numbers beyond a double, more than half a thousand levels.
    """
    try:
        return ormsgpack.packb([stamp, {**record, **orjson.loads(written)}])
    except (orjson.JSONDecodeError, ormsgpack.MsgpackEncodeError):
        return ormsgpack.packb([stamp, {**record, "log": written.decode()}])


async def _introduce(connection: _ForwardConnection, key: str, user: str, password: str) -> None:
    """Answer HELO with PING, and check PONG: both sides know *key*. Raises SinkError."""
    hello = await connection.next()
    if not (isinstance(hello, list) and len(hello) == 2 and hello[0] == "HELO" and isinstance(hello[1], Mapping)):
        raise SinkError("it does not begin with HELO; has it a shared key?")
    nonce = _bytes(hello[1].get("nonce", b""))
    auth = _bytes(hello[1].get("auth", b""))
    name = socket.gethostname()
    salt = random_bytes.token_bytes(16)
    digest = _digest(salt, name.encode(), nonce, key.encode())
    proof = _digest(auth, user.encode(), password.encode()) if auth else ""
    connection.send([ormsgpack.packb(["PING", name, salt, digest, user if auth else "", proof])])
    answer = await connection.next()
    if not (isinstance(answer, list) and len(answer) == 5 and answer[0] == "PONG"):
        raise SinkError("it does not answer PING with PONG")
    if answer[1] is not True:
        raise SinkError(f"it refuses the shared key, user or password: {str(answer[2])[:200]}")
    theirs = _digest(salt, _bytes(answer[3]), nonce, key.encode())
    if not hmac.compare_digest(theirs.encode(), _bytes(answer[4])):
        raise SinkError("it does not know the shared key itself; it is not whom it pretends to be")


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()
