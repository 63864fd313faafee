"""What the first bytes of a connection are: a TLS ClientHello (RFC 8446 section 4.1.2), surely
something else, or too few to tell.

Sans-I/O and bounded: it reads at most 16 KiB, decides nothing about trust, and never consumes what
it looks at. Whatever is malformed is not TLS: the caller then treats it as the plaintext that a
STRICT pod does not take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 16384
"""What may be looked at: a whole ClientHello with its record headers must fit."""
MAX_RECORDS: Final = 64
"""Records over which a ClientHello may be spread: real ones use one; each costs a turn of a loop at every new byte."""
_RECORD_HEADER: Final = 5
_HANDSHAKE_HEADER: Final = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16


@dataclass(frozen=True, slots=True)
class NeedMore:
    """So far this may become a ClientHello."""


@dataclass(frozen=True, slots=True)
class NotTls:
    """This is no ClientHello, whatever comes."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A complete ClientHello."""

    sni: str | None
    """The server name as sent (printable ASCII)."""
    alpn: tuple[bytes, ...]
    """Protocol names in the client's order, RFC 7301."""


NEED_MORE: Final = NeedMore()
NOT_TLS: Final = NotTls()


def parse(data: bytes) -> NeedMore | NotTls | ClientHello:
    """Decide what a connection is by the first bytes it received; bytes behind the ClientHello are left alone."""
    try:
        message = _message(data)
    except _MalformedError:
        return NOT_TLS
    if message is None:
        return NEED_MORE if len(data) < MAX_BYTES else NOT_TLS
    try:
        return _hello(_Reader(message))
    except _MalformedError:
        return NOT_TLS


class _MalformedError(Exception):
    """The bytes break the grammar."""


class _Reader:
    """Takes vectors with length prefixes off the front of *data* (RFC 8446 section 3.4)."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _MalformedError
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, prefix: int, least: int, most: int) -> bytes:
        length = self.number(prefix)
        if not least <= length <= most:
            raise _MalformedError
        return self.take(length)

    @property
    def ended(self) -> bool:
        return self.at == len(self.data)


def _message(data: bytes) -> bytes | None:
    """Return the ClientHello's body put together from its records, None when more bytes are needed."""
    pieces: list[bytes] = []
    promised = 0
    at = 0
    for _ in range(MAX_RECORDS):
        end = _record(data, at)
        if end is None:
            return None
        pieces.append(data[at + _RECORD_HEADER : end])
        promised += end - at - _RECORD_HEADER
        needed = _needed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if needed is not None and promised > needed:
            # RFC 8446 section 5.1: nothing may follow the ClientHello in its record.
            raise _MalformedError
        if len(data) < end:
            return None
        if promised == needed:
            return b"".join(pieces)[_HANDSHAKE_HEADER:]
        at = end
    raise _MalformedError


def _record(data: bytes, at: int) -> int | None:
    """Check the record header at *at* as far as it is there; return where the record ends, None
    when that is not known yet.
    """
    header = data[at : at + _RECORD_HEADER]
    if header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\x03") or (len(header) > 2 and header[2] > 4):
        raise _MalformedError
    if len(header) < _RECORD_HEADER:
        return None
    length = int.from_bytes(header[3:5], "big")
    if not 0 < length <= MAX_BYTES:
        raise _MalformedError
    return at + _RECORD_HEADER + length


def _needed(start: bytes) -> int | None:
    """Return how many bytes of handshake data make the ClientHello, None when its header is not there yet."""
    if start and start[0] != _CLIENT_HELLO:
        raise _MalformedError
    if len(start) < _HANDSHAKE_HEADER:
        return None
    length = int.from_bytes(start[1:_HANDSHAKE_HEADER], "big")
    if length > MAX_BYTES - _HANDSHAKE_HEADER - _RECORD_HEADER:
        raise _MalformedError
    return _HANDSHAKE_HEADER + length


def _hello(reader: _Reader) -> ClientHello:
    if reader.take(2)[0] != 3:
        raise _MalformedError
    reader.take(32)  # random
    reader.vector(1, 0, 32)  # legacy_session_id
    if len(reader.vector(2, 2, 65534)) % 2:
        raise _MalformedError
    reader.vector(1, 1, 255)  # legacy_compression_methods
    if reader.ended:
        return ClientHello(None, ())  # before TLS 1.3 a ClientHello may have no extensions
    extensions = _extensions(_Reader(reader.vector(2, 0, 65535)))
    if not reader.ended:
        raise _MalformedError
    return ClientHello(_server_name(extensions.get(_SERVER_NAME)), _protocols(extensions.get(_ALPN)))


def _extensions(reader: _Reader) -> dict[int, bytes]:
    """Return the extensions by type; none may stand twice (RFC 8446 section 4.2)."""
    found: dict[int, bytes] = {}
    while not reader.ended:
        kind = reader.number(2)
        if kind in found:
            raise _MalformedError
        found[kind] = reader.vector(2, 0, 65535)
    return found


def _server_name(extension: bytes | None) -> str | None:
    """Return the one host name of a server_name extension (RFC 6066 section 3)."""
    if extension is None:
        return None
    outer = _Reader(extension)
    names = _Reader(outer.vector(2, 1, 65535))
    if not outer.ended or names.number(1) != 0:
        raise _MalformedError
    name = names.vector(2, 1, 255)
    if not names.ended or not all(0x21 <= byte <= 0x7E for byte in name):
        raise _MalformedError
    return name.decode("ascii")


def _protocols(extension: bytes | None) -> tuple[bytes, ...]:
    """Return the names of an ALPN extension (RFC 7301 section 3.1)."""
    if extension is None:
        return ()
    outer = _Reader(extension)
    reader = _Reader(outer.vector(2, 2, 65535))
    if not outer.ended:
        raise _MalformedError
    names = []
    while not reader.ended:
        names.append(reader.vector(1, 1, 255))
    return tuple(names)
