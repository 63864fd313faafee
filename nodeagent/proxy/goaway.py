"""How an HTTP/2 client is told that it is not served here: by a GOAWAY that names HTTP/1.1, not by
a connection that breaks.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nodeagent.errors import Reason
from nodeagent.proxy.transport import Transport

LINGER_SECONDS: Final = 1.0
"""What the client still sends is read and dropped so long: a close with unread bytes is a reset,
which can overtake the frames.
"""
_SETTINGS = 4
_GOAWAY = 7
_HTTP_1_1_REQUIRED: Final = 13
"""RFC 9113 sections 6.5, 6.8 and 7."""


def _frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, 0, 0, 0, 0, 0)) + payload


def go_away(loop: asyncio.AbstractEventLoop, transport: Transport, reason: Reason) -> None:
    """Tell the client of *transport*, which has sent its preface, *reason*; then close."""
    if transport.is_closing():
        return
    words = f"{reason.code}: {reason.hint}".encode()
    transport.set_protocol(_Deaf())
    transport.write(_frame(_SETTINGS, b"") + _frame(_GOAWAY, bytes(4) + _HTTP_1_1_REQUIRED.to_bytes(4, "big") + words))
    transport.write_eof()
    transport.resume_reading()
    loop.call_later(LINGER_SECONDS, transport.close)


class _Deaf(asyncio.Protocol):
    """Drops what it is told; the transport closes at the client's end, or soon."""
