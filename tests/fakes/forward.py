"""A forward input (Fluentd's protocol, version 1) for tests, after its specification: packed and
compressed messages, acknowledgements, the handshake with a shared key.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass, field
from typing import Any

import ormsgpack

from nodeagent.logs.sinks.forward import first_message


def entries_of(packed: bytes) -> list[tuple[float, Any]]:
    """Return time and record of each entry in a row of MessagePack arrays ``[EventTime, record]``."""
    result: list[tuple[float, Any]] = []
    while packed:
        # An entry ends where it can be unpacked; the library reads one value only.
        for end in range(1, len(packed) + 1):
            try:
                time, record = ormsgpack.unpackb(packed[:end], ext_hook=lambda _kind, data: data)
            except ormsgpack.MsgpackDecodeError:
                continue
            break
        else:
            raise AssertionError("no whole entry")
        result.append((int.from_bytes(time[:4]) + int.from_bytes(time[4:]) / 1e9, record))
        packed = packed[end:]
    return result


@dataclass
class ForwardInput:
    """What it got, by tag."""

    key: str = ""
    """Shared; empty: no handshake."""
    password: str = ""
    """Of every user; empty: none is wanted."""
    liar: bool = False
    """Whether it pretends to know the key."""
    acknowledges: int = 1 << 30
    """How many messages; then it closes connections instead."""
    received: dict[str, list[tuple[float, Any]]] = field(default_factory=dict)
    chunks: list[str] = field(default_factory=list)
    port: int = 0
    unread: dict[asyncio.StreamReader, bytes] = field(default_factory=dict)
    """What came with the last message, by connection."""
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> asyncio.Server:
        """Listen on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        try:
            if self.key and not await self._greet(reader, writer):
                return
            while message := await self._next(reader):
                tag, packed, options = message
                data = gzip.decompress(packed) if options.get("compressed") == "gzip" else packed
                if not self.acknowledges:
                    return
                self.acknowledges -= 1
                self.received.setdefault(tag, []).extend(entries_of(data))
                self.chunks.append(options["chunk"])
                assert options["size"] == len(entries_of(data))
                writer.write(ormsgpack.packb({"ack": options["chunk"]}))
        finally:
            self.unread.pop(reader, None)
            writer.close()

    async def _next(self, reader: asyncio.StreamReader) -> Any:
        data = self.unread.pop(reader, b"")
        while True:
            try:
                message, self.unread[reader] = first_message(data)
            except ormsgpack.MsgpackDecodeError:
                if not (more := await reader.read(1 << 16)):
                    return None
                data += more
            else:
                return message

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonce, auth = b"n" * 16, b"a" * 16 if self.password else b""
        writer.write(ormsgpack.packb(["HELO", {"nonce": nonce, "auth": auth, "keepalive": True}]))
        kind, name, salt, digest, user, proof = await self._next(reader)
        known = self._digest(salt, name.encode(), nonce, self.key.encode())
        right = kind == "PING" and (self.liar or digest == known)
        if self.password:
            right = right and proof == self._digest(auth, user.encode(), self.password.encode())
        key = b"guessed" if self.liar else self.key.encode()
        theirs = self._digest(salt, b"server", nonce, key) if right else ""
        writer.write(ormsgpack.packb(["PONG", right, "" if right else "shared_key mismatch", "server", theirs]))
        return right

    @staticmethod
    def _digest(*parts: bytes) -> str:
        return hashlib.sha512(b"".join(parts)).hexdigest()
