"""An answer as an HTTP/1 client reads it: framed, and gathered so that what is known at once goes
out at once. No I/O.
"""

from __future__ import annotations

from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http1.wire import chunk, last_chunk, status_line, write_fields


class AnswerWriter:
    """Frames one answer after the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._chunked = False

    def head(self, status: int, fields: list[Field], persistence: bytes, *, chunked: bool) -> None:
        """Begin an answer. *persistence*: the line that says what becomes of the connection, if
        any; *chunked*: the body's length is not known.
        """
        parts = self._parts
        parts.append(status_line(status))
        write_fields(parts, fields)
        if chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(persistence)
        parts.append(b"\r\n")
        self._chunked = chunked

    def data(self, piece: bytes) -> None:
        """Go on with the body."""
        self._parts.append(chunk(piece) if self._chunked else piece)

    def end(self, trailers: list[Field]) -> None:
        """Complete the body; without chunks there is no place for *trailers*."""
        if self._chunked:
            self._parts.append(last_chunk(trailers))
            self._chunked = False

    def take(self) -> bytes:
        """Return what was said since the last time."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def interim_head(status: int, fields: list[Field]) -> bytes:
    """Return an answer before the answer (RFC 9110 section 15.2)."""
    parts = [status_line(status)]
    write_fields(parts, fields)
    parts.append(b"\r\n")
    return b"".join(parts)
