"""The statuses with which calls end: from fields, from HTTP, and from the proxy's own reasons. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nodeagent.errors import DEADLINE, RATE_LIMITED, REQUEST_TIMEOUT, Reason
from nodeagent.proxy.http.fields import Field

STATUS: Final = b"grpc-status"
UNKNOWN: Final = "2"
_KNOWN: Final = {b"%d" % code: f"{code}" for code in range(17)}
"""Every status has its number only (gRPC's statuscodes.md); what is none of them counts as UNKNOWN,
so that a server makes up no series.
"""
_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""gRPC's http-grpc-status-mapping.md, as Envoy's ``Grpc::Utility::httpToGrpcStatus`` has it."""
_OF_REASON: Final = {RATE_LIMITED.code: 8, REQUEST_TIMEOUT.code: 4, DEADLINE.code: 4}
"""Where the proxy knows better than HTTP's code says: RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED."""
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}
_ENCODED: Final = [bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in range(256)]


def told(fields: Iterable[Field]) -> str:
    """Return the number of the status that *fields* tell, empty where they tell none."""
    for name, value in fields:
        if name == STATUS or name.lower() == STATUS:
            return _KNOWN.get(value, UNKNOWN)
    return ""


def of_http(status: int) -> str:
    """Return the status of an answer with the HTTP *status* that tells none; empty: there was no answer."""
    return f"{_OF_HTTP.get(status, 2)}" if status else ""


def trailers_only(reason: Reason) -> list[Field]:
    """Return the fields of an answer that consists of them alone (PROTOCOL-HTTP2.md, Trailers-Only)
    and says *reason*: a gRPC client reads no body.
    """
    code = _OF_REASON.get(reason.code, _OF_HTTP.get(reason.status, 2))
    words = reason.body or f"{reason.code} ({reason.flag}): {reason.hint}".encode()
    answer: list[Field] = [(b"content-type", b"application/grpc"), (STATUS, b"%d" % code)]
    answer += [(b"grpc-message", percent_encoded(words)), (b"server", b"nodeagent")]
    ours = frozenset([*[name for name, _ in answer], b"content-length"])
    more = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in reason.headers]
    return answer + [field for field in more if field[0].lower() not in ours]


def percent_encoded(words: bytes) -> bytes:
    """Return *words*, UTF-8, as the value of ``grpc-message``."""
    return b"".join([_ENCODED[byte] for byte in words])
