"""Which header fields the proxy looks at, found by one dictionary look-up a field.

Names compare without case; the table remembers the spellings that it has met, within a bound, so
that a usual spelling costs no lower().
"""

from __future__ import annotations

from typing import Final

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

FRAMING: Final = LENGTH | ENCODING | CONNECTION | UPGRADE | HOP_BY_HOP
"""Fields that decide how long a message is or end at this hop: a message with none of them is simple."""

NOTED: Final = REQUEST_ID | CLIENT_CERT | USER_AGENT | FORWARDED_FOR
"""Fields that the access log or a policy asks for."""

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
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"proxy-authenticate": HOP_BY_HOP,
    b"proxy-authorization": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
}
SPELLINGS: Final = 4096
_known: dict[bytes, int] = dict(_FIELDS)
_CLIENT_CERT: Final = b"x-forwarded-client-cert"
_FOLDED: Final = bytes(byte if chr(byte).isascii() and chr(byte).isalnum() else 0x2D for byte in range(256))


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
        if len(_known) < SPELLINGS:
            _known[name] = kind
    return kind
