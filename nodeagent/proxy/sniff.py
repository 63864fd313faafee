"""Which protocol a client speaks, from its first line. Pure; hostile input is expected.

Whatever any HTTP server may take for a request line is HTTP here, also where it is none by RFC 9112
section 3: the parser behind refuses what it does not like, while bytes that nobody parsed would
bring a client's own X-Forwarded-Client-Cert to the application. So lines may end with LF alone,
blank lines may come first, and any white space that a program may split a line at separates its
words.
"""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["http", "http2", "tcp", "more", "unlikely"]
"""``more``: an HTTP request has begun by all appearances. ``unlikely``: it could still become one,
with a method that nobody registered.
"""

_BLANK: Final = b" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"
"""At what str.split() of the Latin-1 text splits."""
_SPACES: Final = bytes(0x20 if byte in _BLANK else byte for byte in range(256))
_VISIBLE: Final = bytes(range(0x21, 0x7F))
"""Of what a method may consist: servers take more for one than a token (gunicorn before 22: ``GET:``)."""
_SIMPLE: Final = (b"GET",)
"""What a request without a version may ask (HTTP/0.9; ``get`` is memcached's). Node.js, aiohttp and
Python's http.server read the fields behind it, too.
"""
_AIRPLAY: Final = (b"GET", b"POST")
"""Of these llhttp (Node.js, aiohttp) also takes RTSP/1.0 for HTTP/1.0; RTSP itself has no such
methods (RFC 7826 section 13).
"""
_REGISTERED: Final = (
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"OPTIONS",
    b"ORDERPATCH",
    b"PATCH",
    b"POST",
    b"PRI",
    b"PROPFIND",
    b"PROPPATCH",
    b"PUT",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"TRACE",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
)
"""https://www.iana.org/assignments/http-methods"""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
"""RFC 9113 section 3.4."""
_METHOD: Final = 32
"""Bytes of a method that are kept: more than any registered one has."""
_VERSION: Final = 128
"""Bytes of a line's end that are kept, in which its last word is looked for."""
_SETTINGS: Final = b"\x04\0\0\0\0\0"
"""Kind, flags and stream of the frame with which an HTTP/2 server begins, behind three bytes of length."""
LONGEST: Final = 1 << 20
"""No server takes a request line of more bytes."""
GREETING: Final = 1 << 16
"""No server says more by way of HTTP/2's beginning to a client that is silent."""


class FirstLine:
    """Reads the first line of a connection on a port that nobody declared, as its bytes come."""

    __slots__ = ("_end", "_method", "_phase", "_read")

    def __init__(self) -> None:
        self._phase = self._read = 0
        self._method = self._end = b""

    def feed(self, data: bytes) -> Verdict:
        """Return what the connection is, given the next *data*; nothing is asked after ``http``,
        ``http2`` or ``tcp``.
        """
        self._read += len(data)
        if self._phase == 0:
            data = data.lstrip(_BLANK)
            self._phase = 1 if data else 0
        if self._phase == 1:
            rest = data.lstrip(_VISIBLE)
            self._method = (self._method + data[: len(data) - len(rest)])[:_METHOD]
            if rest and (rest[0] not in _BLANK or not self._method):
                return "tcp"
            self._phase, data = (2, rest) if rest else (1, b"")
        end = data.find(b"\n") if self._phase == 2 else -1
        self._end = (self._end + (data if end < 0 else data[:end]))[-_VERSION:]
        if end >= 0:
            return self._whole()
        return "tcp" if self._read > LONGEST else self._begun()

    def _begun(self) -> Verdict:
        method = self._method
        known = method in _REGISTERED if self._phase == 2 else any(each.startswith(method) for each in _REGISTERED)
        return "more" if method and known else "unlikely"

    def _whole(self) -> Verdict:
        words = self._end.translate(_SPACES).split()
        if words and not self._asks(words):
            return "tcp"
        if not words and len(self._end) < _VERSION:
            return "tcp"  # a single word
        return "http2" if self._method == b"PRI" else "http"

    def _asks(self, words: list[bytes]) -> bool:
        """Say whether a line that ends with *words* is a request's, to any server."""
        last = words[-1].upper()
        if last.startswith(b"HTTP/") or (last.startswith(b"RTSP/") and self._method in _AIRPLAY):
            return True
        path = len(words) == 1 and (last.startswith(b"/") or b"://" in last or len(self._end) == _VERSION)
        return path and self._method in _SIMPLE


def sniff_declared(data: bytes) -> Verdict:
    """Return how a connection that began with *data* is carried on a port that is declared to be
    HTTP: so it is, unless it is HTTP/2.
    """
    start = data[: len(_PREFACE)]
    if not _PREFACE.startswith(start):
        return "http"
    return "http2" if len(start) == len(_PREFACE) else "more"


def begins_http2(data: bytes) -> bool:
    """Say whether a server that has said *data*, and its client nothing, speaks HTTP/2, by all that is
    there (RFC 9113 section 3.4).
    """
    begun = data[:1] == b"\0" and _SETTINGS.startswith(data[3 : 3 + len(_SETTINGS)])
    return begun and len(data) <= GREETING
