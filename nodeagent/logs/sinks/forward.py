"""Fluentd and Fluent Bit, by the forward protocol, version 1: one message a tag, packed (and compressed),
each acknowledged by its chunk's id.

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
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import orjson
import ormsgpack
from isal import igzip

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.secrets import ClientTls, MadeOfFiles, SinkError, readable, secret
from nodeagent.logs.sinks.settings import ForwardSettings
from nodeagent.logs.sinks.sink import Outcome, Payload, Taken, Untaken
from nodeagent.logs.sinks.times import nanoseconds

CONNECT_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 << 10
"""Bytes of a message from the server."""
GZIP_LEVEL: Final = 1
_EVENT_TIME: Final = 0


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
        self._at = 0
        self._connection: _ForwardConnection | None = None

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return each of *batch* as a message."""
        return Payload(batch, [self._message(records) for records in batch])

    async def send(self, payload: Payload) -> Outcome:
        """Send the messages one after the other, each after the acknowledgement of the one before."""
        sent = 0
        address = self._settings.addresses[self._at % len(self._settings.addresses)]
        try:
            async with asyncio.timeout(self._timeout):
                for records, message in zip(payload.batch, payload.body, strict=True):
                    assert isinstance(message, bytes)
                    await self._acknowledged(address, message)
                    sent += len(records)
        except (OSError, UnicodeError, SinkError) as error:
            await self.close()
            self._at += 1
            why = f"{address}: {readable(error)}"
            if not sent:
                return Untaken(why)
            return Taken(again=range(sent, sum(map(len, payload.batch))), why=why)
        except asyncio.CancelledError:
            await self.close()
            raise
        return Taken()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _message(self, records: LogRecords) -> bytes:
        members = orjson.loads(b"{%b}" % records.origin.members)
        entries: list[bytes] = []
        columns = zip(records.times, records.streams, records.objects, strict=True)
        for time, stream, written in columns:
            seconds, nanos = divmod(nanoseconds(time), 1_000_000_000)
            stamp = ormsgpack.Ext(_EVENT_TIME, seconds.to_bytes(4) + nanos.to_bytes(4))
            record = ({"stream": stream.decode()} if stream else {}) | members
            entries.append(_entry(stamp, record, written))
        packed = b"".join(entries)
        chunk = base64.b64encode(hashlib.blake2b(packed, digest_size=16).digest()).decode()
        options: dict[str, object] = {"chunk": chunk, "size": len(records)}
        if self._settings.gzip:
            packed = igzip.compress(packed, compresslevel=GZIP_LEVEL)
            options["compressed"] = "gzip"
        return ormsgpack.packb([records.origin.tag, packed, options])

    async def _acknowledged(self, address: str, message: bytes) -> None:
        if self._connection is None:
            self._connection = await self._connect(address)
        # The chunk's id is within the message; it is the last that a server can answer with.
        answer = await self._connection.ask(message)
        expected = ormsgpack.unpackb(message)[2]["chunk"]
        if not isinstance(answer, Mapping) or answer.get("ack") != expected:
            raise SinkError("it acknowledges something else; is this a forward input with require_ack_response?")

    async def _connect(self, address: str) -> _ForwardConnection:
        parts = urlsplit(f"//{address}")
        keys = self._secrets.get() if self._settings.shared_key_file else []
        context = self._tls.context() if self._tls else None
        host = parts.hostname or ""
        name = (self._tls.server_name or host) if self._tls else None
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, parts.port, ssl=context, server_hostname=name)
            connection = _ForwardConnection(reader, writer)
            try:
                if keys:
                    await _introduce(connection, keys[0], self._settings.user, keys[1] if len(keys) > 1 else "")
            except BaseException:
                connection.close()
                raise
        return connection


class _ForwardConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def close(self) -> None:
        self._writer.transport.abort()

    async def ask(self, message: bytes) -> object:
        """Send *message* and return what is answered."""
        self._writer.write(message)
        await self._writer.drain()
        return await self.next()

    async def next(self) -> object:
        """Return the server's next message: it says nothing of its own accord behind it."""
        data = b""
        while len(data) < MAX_ANSWER:
            more = await self._reader.read(MAX_ANSWER)
            if not more:
                raise SinkError(
                    "it closed the connection without an acknowledgement; does it want a shared key or TLS?"
                )
            data += more
            try:
                return ormsgpack.unpackb(data)
            except ormsgpack.MsgpackDecodeError:
                continue
        raise SinkError(f"its answer has more than {MAX_ANSWER} bytes, or is not MessagePack")


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
    answer = await connection.ask(ormsgpack.packb(["PING", name, salt, digest, user if auth else "", proof]))
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
