"""Header and trailer fields as pairs of name and value: which of them the proxy looks at, and how
they are changed.

A field's name stands as its sender spelled it, since an HTTP/1 server may be particular about that;
names are compared without case. An HTTP/2 codec writes them in lower case (RFC 9113 section 8.2).
Host is among the fields, at the place where the client put it; the authority is known apart from it
(:attr:`Exchange.authority`): an HTTP/2 codec makes the one of ``:authority`` as it reads, and leaves
Host out as it writes.

What a field is to the proxy is found by one dictionary look-up: the table remembers the spellings
that it has met, so that a usual spelling costs no lower(). Peers choose what is met: all such tables
are kept small by :func:`has_room`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

Field = tuple[bytes, bytes]
"""Name and value, without white space around either."""
NO_FIELDS: Final[list[Field]] = []
"""Never changed: who adds a field makes a new list."""

HOST: Final = 1
LENGTH: Final = 2
ENCODING: Final = 4
CONNECTION: Final = 8
UPGRADE: Final = 16
REQUEST_ID: Final = 32
FORWARDED_PROTO: Final = 64
CLIENT_CERT: Final = 128
USER_AGENT: Final = 256
FORWARDED_FOR: Final = 512
HOP_BY_HOP: Final = 1024
EXPECT: Final = 2048
CONTENT_TYPE: Final = 4096

FRAMING: Final = LENGTH | ENCODING | CONNECTION | UPGRADE | HOP_BY_HOP
"""Fields that decide how long a message is or end at this hop: a message with none of them is simple."""

NOTED: Final = REQUEST_ID | CLIENT_CERT | USER_AGENT | FORWARDED_FOR | CONTENT_TYPE
"""Fields that the access log, a policy or gRPC asks for."""

_FIELDS: Final = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": ENCODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"x-request-id": REQUEST_ID,
    b"x-forwarded-proto": FORWARDED_PROTO,
    b"x-forwarded-client-cert": CLIENT_CERT,
    b"user-agent": USER_AGENT,
    b"x-forwarded-for": FORWARDED_FOR,
    b"expect": EXPECT,
    b"content-type": CONTENT_TYPE,
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"proxy-authenticate": HOP_BY_HOP,
    b"proxy-authorization": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
}
KNOWN: Final = 4096
"""What one table remembers at most."""
KNOWN_BYTES: Final = 128
"""Of what is remembered: a peer may send longer ones."""
_known: Final[dict[bytes, int]] = dict(_FIELDS)
_CLIENT_CERT: Final = b"x-forwarded-client-cert"
_FOLDED: Final = bytes(byte if chr(byte).isascii() and chr(byte).isalnum() else 0x2D for byte in range(256))


def has_room(known: dict[bytes, int] | dict[bytes, bytes], met: bytes) -> bool:
    """Say whether the table *known* may remember what *met*, which a peer sent, is. One that is full
    begins anew, so that nobody fills it for others: what is usual is back with the next message.
    """
    if len(met) > KNOWN_BYTES:
        return False
    if len(known) >= KNOWN:
        known.clear()
    return True


def folded(name: bytes) -> bytes:
    """Return *name* in lower case, with ``-`` for every sign: fields that are alike then are one to
    CGI (RFC 3875 section 4.1.18), WSGI and PHP.
    """
    return name.lower().translate(_FOLDED)


def is_client_cert(name: bytes) -> bool:
    """Say whether some application takes the field *name* for X-Forwarded-Client-Cert."""
    return folded(name) == _CLIENT_CERT


def classify(name: bytes) -> int:
    """Return what *name* is to the proxy (one of the constants above), 0 for a field that only passes."""
    kind = _known.get(name)
    if kind is None:
        kind = _FIELDS.get(name.lower(), CLIENT_CERT if is_client_cert(name) else 0)
        if has_room(_known, name):
            _known[name] = kind
    return kind


def joined(fields: Sequence[Field], name: bytes) -> bytes | None:
    """Return the value of the field *name* (lower case) among *fields*, several lines joined with a
    comma (RFC 9110 section 5.3); None without it.
    """
    values = [value for own, value in fields if own.lower() == name]
    return b",".join(values) if values else None


def size(fields: Sequence[Field]) -> int:
    """Return how many bytes *fields* take in a message of HTTP/1."""
    return sum([len(name) + len(value) + 4 for name, value in fields])


def without(fields: Sequence[Field], unwanted: Callable[[bytes], bool]) -> list[Field]:
    """Return *fields* but for those whose name is *unwanted*."""
    return [field for field in fields if not unwanted(field[0])]


def with_fields(fields: list[Field], changes: tuple[tuple[str, str, str], ...]) -> list[Field]:
    """Return *fields* with *changes* (lower-case name, value, how: add, set, add_if_absent or
    set_if_present) put one after the other.
    """
    for name, value, how in changes:
        key = name.encode("latin-1")
        rest = without(fields, _named(key))
        present = len(rest) < len(fields)
        if (how == "add_if_absent" and present) or (how == "set_if_present" and not present):
            continue
        kept = rest if how in ("set", "set_if_present") else fields
        fields = [*kept, (key, value.encode("latin-1"))]
    return fields


def rewritten(fields: list[Field], remove: tuple[str, ...], add: tuple[tuple[str, str], ...]) -> list[Field]:
    """Return *fields* without those named in *remove*, and what applications take for them, and
    with the names and values in *add*.
    """
    if remove:
        unwanted = frozenset([folded(name.encode("latin-1")) for name in remove])
        fields = without(fields, lambda name: folded(name) in unwanted)
    return fields + [(name.encode("latin-1"), value.encode("latin-1")) for name, value in add]


def _named(key: bytes) -> Callable[[bytes], bool]:
    return lambda name: name.lower() == key
