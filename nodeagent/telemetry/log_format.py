"""The access log's two formats: pure, a batch of records in, bytes out.

Text is Istio's default format, JSON has Istio's keys in Istio's order. What clients send cannot
forge a line, a field or a terminal's escape code: whatever is not plain ASCII is written as
``\\xXX`` in text (as nginx does) and as a JSON escape in JSON.

Source: istio/istio pilot/pkg/model/log.go: EnvoyTextLogFormat, EnvoyJSONLogFormatIstio.
"""

from __future__ import annotations

import json as stdlib_json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal, TypeAlias, cast

import orjson

Format = Literal["text", "json"]
# fmt: off
Record: TypeAlias = tuple[
    float, str, str, str, int, str, str, str, str, int, int, float, float | None,
    str, str, str, str, str, str, str, str, str, str, str, str,
]
# fmt: on
"""The values of FIELDS in that order: a plain tuple, because a named one costs several times as much per request."""

FIELDS: Final = (
    *("start_time", "method", "path", "protocol", "response_code", "response_flags", "response_code_details"),
    *(
        "connection_termination_details",
        "upstream_transport_failure_reason",
        "bytes_received",
        "bytes_sent",
        "duration",
        "upstream_service_time",
    ),
    *(
        "x_forwarded_for",
        "user_agent",
        "request_id",
        "authority",
        "upstream_host",
        "upstream_cluster",
        "upstream_local_address",
    ),
    *("downstream_local_address", "downstream_remote_address", "requested_server_name", "route_name"),
    "grpc_status",
)
"""Istio's JSON keys, in the order of its text format, and ``grpc_status``, which only lines of gRPC
calls have, at the end: Istio's format has no place for it. ``start_time`` is Unix time in seconds;
``duration`` and ``upstream_service_time`` are milliseconds, the latter None where no upstream
answered. A text is ``-`` where there is none; one that a client sent is its bytes decoded as
Latin-1.
"""
_PATH: Final = 2
_FLAGS: Final = 5
_DURATION: Final = 11
_UPSTREAM_TIME: Final = 12
_SERVER_NAME: Final = 22
_GRPC_STATUS: Final = 24
# Literals, so that the type checker knows the element's type; a test compares them with FIELDS.
_SPACED: Final = tuple(
    FIELDS.index(name) for name in ("upstream_transport_failure_reason", "x_forwarded_for", "user_agent")
)
"""Fields in which a space means nothing; anywhere else it would shift the fields after it."""

_LINE: Final = '[%s] "%s %s %s" %d %s %s %s "%s" %d %d %d %s "%s" "%s" "%s" "%s" "%s" %s %s %s %s %s %s\n'
_SPECIAL: Final = bytes([*range(32), *b'"\\', 127])
_SPECIAL_PER_LINE: Final = sum(byte in _SPECIAL for byte in _LINE.encode())


def formatter(kind: Format) -> Callable[[Sequence[Record]], bytes]:
    """Return the function that makes a batch of records into lines."""
    return text if kind == "text" else json


def text(records: Sequence[Record]) -> bytes:
    """Return *records* as lines of Istio's default text format."""
    lines = [_line(record) for record in records]
    if not _plain("".join(lines), len(lines)):
        lines = [
            line if _plain(line, 1) else _line(_escaped(record)) for line, record in zip(lines, records, strict=True)
        ]
    return "".join(lines).encode()


def json(records: Sequence[Record]) -> bytes:
    """Return *records* as JSON objects, one a line, ASCII only."""
    return b"".join([_object(record) for record in records])


def _line(record: Record) -> str:
    if " " in record[_PATH] or " " in record[_SERVER_NAME]:
        record = _escaped(record)
    upstream = record[_UPSTREAM_TIME]
    line = _LINE % (
        _timestamp(int(record[0] * 1000)),
        *record[1:_UPSTREAM_TIME],
        "-" if upstream is None else int(upstream),
        *record[_UPSTREAM_TIME + 1 : _GRPC_STATUS],
    )
    return line if record[_GRPC_STATUS] == "-" else f"{line[:-1]} {record[_GRPC_STATUS]}\n"


def _plain(lines: str, count: int) -> bool:
    """Say whether no value in *count* lines holds a special character.

    Each line has a known number of them from the format, and values can only add to it: so one pass
    over a whole batch tells, and an honest batch pays nothing per field.
    """
    if not lines.isascii():
        return False
    data = lines.encode()
    return len(data) - len(data.translate(None, _SPECIAL)) == count * _SPECIAL_PER_LINE


def _escaped(record: Record) -> Record:
    values: list[object] = [
        _escape(value, place in _SPACED) if isinstance(value, str) else value for place, value in enumerate(record)
    ]
    return cast(Record, tuple(values))


def _escape(value: str, spaces: bool) -> str:
    first = 32 if spaces else 33
    return "".join(
        [chr(byte) if first <= byte <= 126 and byte not in _SPECIAL else f"\\x{byte:02X}" for byte in _bytes(value)]
    )


def _bytes(value: str) -> bytes:
    """Return what was on the wire: header values are kept as Latin-1, one character a byte (RFC 9110 section 5.5)."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode(errors="surrogatepass")


def _object(record: Record) -> bytes:
    values: list[object] = list(record)
    values[0] = _timestamp(int(record[0] * 1000))
    values[_DURATION] = int(record[_DURATION])
    upstream = record[_UPSTREAM_TIME]
    values[_UPSTREAM_TIME] = None if upstream is None else int(upstream)
    fields = {name: None if value == "-" else value for name, value in zip(FIELDS, values, strict=True)}
    fields["response_flags"] = record[_FLAGS]  # Envoy leaves this one "-"
    if fields["grpc_status"] is None:
        del fields["grpc_status"]
    try:
        line = orjson.dumps(fields)
    except TypeError:
        line = b"\xff"  # a lone surrogate, which orjson refuses
    if line.isascii() and b"\x7f" not in line:
        return line + b"\n"
    # orjson leaves DEL and everything from U+0080 as it is; a terminal's C1 escape codes are among
    # them.
    decoded = {
        name: _bytes(value).decode(errors="replace") if isinstance(value, str) else value
        for name, value in fields.items()
    }
    return stdlib_json.dumps(decoded, separators=(",", ":")).replace("\x7f", "\\u007f").encode() + b"\n"


@lru_cache(maxsize=256)
def _timestamp(milliseconds: int) -> str:
    """Return Envoy's %START_TIME%, ISO 8601 in UTC, of Unix time in milliseconds; under load many
    requests share one.
    """
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03d}Z"
