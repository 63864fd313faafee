"""The node's DNS: answers for the cluster's names, over UDP and TCP (RFC 1035, RFC 7766). The
protocol part, :func:`answer`, is pure.

It is the only server that pods know, and it knows no other: a name outside the cluster does not
exist.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import cast

from nodeagent.lab.services import DOMAIN

_TTL_SECONDS = 5
_A = 1
_AAAA = 28
_OPT = 41
_ANY = 255
_IN = 1
_NOERROR = 0
_FORMERR = 1
_NXDOMAIN = 3
_NOTIMP = 4
_HEADER = struct.Struct("!HHHHHH")
_RESPONSE = 0x8000
_AUTHORITATIVE = 0x0400
_TRUNCATED = 0x0200
_RECURSION = 0x0180
_DEFAULT_SIZE = 512
_TCP_IDLE_SECONDS = 10

Lookup = Callable[[str], Sequence[str] | None]
"""Lower-case name without the final dot -> its addresses; None: there is no such name."""


def answer(query: bytes, lookup: Lookup, *, limit: int | None = None) -> bytes | None:
    """Return the answer to *query*, at most *limit* bytes (None: what the query's EDNS allows, else
    512); None if it is not a query at all.

    An answer that does not fit is cut and marked, so that the client asks again by TCP.
    """
    if len(query) < _HEADER.size:
        return None
    ident, flags, questions, _, _, additional = _HEADER.unpack_from(query)
    if flags & _RESPONSE:
        return None
    if flags & 0x7800:
        return _reply(ident, flags, b"", [], _NOTIMP)
    try:
        if questions != 1:
            raise ValueError("one question")
        name, end = _name(query, _HEADER.size)
        kind, klass = struct.unpack_from("!HH", query, end)
        question = query[_HEADER.size : end + 4]
        size = limit or (_edns_size(query, end + 4) if additional else _DEFAULT_SIZE)
    except (ValueError, struct.error, IndexError, UnicodeDecodeError):
        return _reply(ident, flags, b"", [], _FORMERR)
    found = lookup(name) if klass == _IN else None
    if found is None:
        return _reply(ident, flags, question, [], _NOERROR if _is_parent(name) else _NXDOMAIN)
    packed = [ip_address(address).packed for address in found]
    wanted = [each for each in packed if kind == _ANY or kind == (_A if len(each) == 4 else _AAAA)]
    random.shuffle(wanted)
    records = [
        struct.pack("!HHHIH", 0xC00C, _A if len(each) == 4 else _AAAA, _IN, _TTL_SECONDS, len(each)) + each
        for each in wanted
    ]
    whole = _reply(ident, flags, question, records, _NOERROR)
    return whole if len(whole) <= size else _reply(ident, flags | _TRUNCATED, question, [], _NOERROR)


def _reply(ident: int, flags: int, question: bytes, records: Sequence[bytes], code: int) -> bytes:
    flags = _RESPONSE | _AUTHORITATIVE | (flags & (0x7900 | _TRUNCATED)) | (_RECURSION & 0x80) | code
    return _HEADER.pack(ident, flags, 1 if question else 0, len(records), 0, 0) + question + b"".join(records)


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """Return the name at *offset*, lower-cased, and the offset behind it; a question's name is never compressed."""
    labels = []
    while length := message[offset]:
        if length > 63:
            raise ValueError("compressed name in a question")
        labels.append(message[offset + 1 : offset + 1 + length].decode("ascii").lower())
        offset += 1 + length
    return ".".join(labels), offset + 1


def _edns_size(message: bytes, offset: int) -> int:
    """Return the UDP size that an OPT record (RFC 6891) at *offset* announces."""
    if message[offset : offset + 1] != b"\0":
        return _DEFAULT_SIZE
    kind, size = struct.unpack_from("!HH", message, offset + 1)
    return max(size, _DEFAULT_SIZE) if kind == _OPT else _DEFAULT_SIZE


def _is_parent(name: str) -> bool:
    """A name above others exists, and is empty (RFC 8020)."""
    return name in (DOMAIN, f"svc.{DOMAIN}", f"pod.{DOMAIN}")


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        reply = answer(data, self._lookup)
        if reply and self._transport:
            self._transport.sendto(reply, addr)


async def serve(addresses: Sequence[str], lookup: Lookup, port: int = 53) -> list[asyncio.Server]:
    """Open DNS on *addresses*, UDP and TCP; and return the TCP servers, which stay open while they
    are referred to. Raises OSError if the port is taken.
    """

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    query = await reader.readexactly(length)
                reply = answer(query, lookup, limit=65535)
                if reply is None:
                    return
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            return
        finally:
            writer.close()

    loop = asyncio.get_running_loop()
    servers = []
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: _Datagrams(lookup), local_addr=(address, port))
        servers.append(await asyncio.start_server(stream, address, port))
    return servers
