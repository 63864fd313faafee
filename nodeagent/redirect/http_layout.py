"""bpf/http.h for Python, and the automaton by which bpf/http.c reads HTTP/1: which bytes frame a
message, and nothing else.

The automaton is a table from (state, byte) to state; states that have an effect are named in the
header. It is strict where two readers of one message could disagree about its end (RFC 9112, 6.3
and 11.2): such a connection is given up.
"""

from __future__ import annotations

import ctypes
from typing import Final

from nodeagent.telemetry.metrics import BUCKETS

_u8 = ctypes.c_uint8
_u16 = ctypes.c_uint16
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64

STATES: Final = 128
BOUNDS: Final = len(BUCKETS)
IN_FLIGHT: Final = 32
BUFFER: Final = 320
SERIES: Final = 4096
"""Of requests, by pods, port, service, status and outcome, that the kernel counts between two readings."""

NAMED_STATES: Final = (
    "unreadable",
    *(
        "method_head",
        "method_connect",
        "status_1",
        "status_2",
        "status_3",
        "length",
        "length_digit",
        "chunked",
        "head_end",
    ),
    *("size_digit", "size_end", "message_end"),
    *("skip_line", "request", "response", "size", "data_end", "trailer", "body", "to_the_end"),
)
"""enum http_state, in its order and in lower case."""
OUTCOMES: Final = (
    "answered",
    "client_left",
    "server_left",
    "not_http",
    "missed_bytes",
    "too_deep",
    "too_long",
    "unasked",
)
"""enum http_outcome, in its order and in lower case."""
ANSWERED: Final = OUTCOMES.index("answered")
FIRST_UNKNOWN: Final = OUTCOMES.index("not_http")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


class HttpKey(ctypes.Structure):
    _fields_ = [
        ("source", _u32),
        ("destination", _u32),
        ("service", _u32),
        ("port", _u16),
        ("status", _u16),
        ("outcome", _u32),
    ]


class HttpCellValue(ctypes.Structure):
    _fields_ = [("buckets", _u64 * (BOUNDS + 1) * 3), ("sums", _u64 * 3)]


class HttpRequest(ctypes.Structure):
    _fields_ = [("started", _u64), ("bytes", _u64), ("method", _u64)]


class HttpStream(ctypes.Structure):
    _fields_ = [
        *(
            (name, _u64)
            for name in ("left", "length", "started", "position", "begin", "at", "base", "cursor", "filled")
        ),
        *((name, _u32) for name in ("next", "status")),
        *((name, _u8) for name in ("state", "method", "has_length", "chunked")),
        ("reserved", _u32),
        ("buffer", _u8 * (BUFFER + 8)),
    ]


class HttpFlow(ctypes.Structure):
    _fields_ = [
        ("key", HttpKey),
        *(
            (name, _u32)
            for name in ("unreadable", "tunnel", "client_ended", "server_joined", "sent", "answered", "reserved")
        ),
        ("requests", HttpRequest * IN_FLIGHT),
        ("streams", HttpStream * 2),
    ]


class HttpEnd(ctypes.Structure):
    _fields_ = [("flow", _u64), ("role", _u32), ("reserved", _u32)]


class HttpTables(ctypes.Structure):
    _fields_ = [
        ("next", _u8 * 256 * STATES),
        ("bounds", _u64 * BOUNDS * 2),
        ("new_flow", HttpFlow),
        ("new_cell", HttpCellValue),
        ("uncounted", _u64),
    ]


def tables() -> HttpTables:
    """Return the contents of the map ``http_tables``: the automaton, the histograms' bounds, and
    how new entries begin.
    """
    made = HttpTables()
    for state, row in _Automaton().rows.items():
        made.next[state][:] = row
    made.bounds[0][:] = [int(bound * 1_000_000) for bound in BUCKETS]
    made.bounds[1][:] = [int(bound) for bound in BUCKETS]
    for stream, name in zip(made.new_flow.streams, ("request", "response"), strict=True):
        stream.state = NAMED_STATES.index(name)
    return made


_DIGITS: Final = b"0123456789"
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"
_BLANKS: Final = b" \t"
_NO_CONTROLS: Final = bytes(byte for byte in range(256) if byte >= 32 and byte != 127)


class _Automaton:
    """The table under construction: ``rows[state][byte]`` is a state, "unreadable" unless something is said."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self._numbers = {name: number for number, name in enumerate(NAMED_STATES)}
        self._first_lines()
        self._lines()
        self._length()
        self._transfer_encoding()
        self._chunks()

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._numbers))
        if number >= STATES:
            raise ValueError(f"the automaton has more than {STATES} states")
        return number

    def _go(self, state: str, on: bytes, to: str) -> None:
        row = self.rows.setdefault(self._number(state), [0] * 256)
        for byte in on:
            row[byte] = self._number(to)

    def _end_line(self, state: str, then: str = "line") -> None:
        """A line may end here: by CR LF, or by LF alone (RFC 9112, 2.2)."""
        self._go(state, b"\r", f"{then} after CR")
        self._go(state, b"\n", then)
        self._go(f"{then} after CR", b"\n", then)

    def _word(self, start: str, word: str, to: str, otherwise: str = "") -> None:
        """Read *word*, in either case when *otherwise* is given: the state for a line that begins otherwise."""
        state = start
        for place, letter in enumerate(word):
            name = to if place + 1 == len(word) else f"{start}:{word[: place + 1]}"
            if otherwise:
                self._otherwise(state, otherwise)
            self._go(state, (letter.lower() + letter.upper()).encode() if otherwise else letter.encode(), name)
            state = name

    def _otherwise(self, state: str, otherwise: str) -> None:
        if self._number(state) not in self.rows:
            self._go(state, bytes(range(256)), otherwise)
            if otherwise == "skip_line":
                self._go(state, b"\n", "line")

    def _first_lines(self) -> None:
        self._go("request", b"\r\n", "request")
        for method in METHODS:
            to = {"HEAD": "method_head", "CONNECT": "method_connect"}.get(method, "target")
            self._word("request", f"{method} ", to)
        for state in ("target", "method_head", "method_connect"):
            self._go(state, _NO_CONTROLS, "skip_line")
        self._word("response", "HTTP/1.", "version")
        self._go("version", _DIGITS, "after version")
        self._go("after version", b" ", "before status")
        for before, on, to in (
            ("before status", b"123456789", "status_1"),
            ("status_1", _DIGITS, "status_2"),
            ("status_2", _DIGITS, "status_3"),
        ):
            self._go(before, on, to)
        self._go("status_3", b" ", "skip_line")
        self._end_line("status_3")

    def _lines(self) -> None:
        self._go("skip_line", bytes(range(256)), "skip_line")
        self._go("skip_line", b"\n", "line")
        self._otherwise("line", "skip_line")
        self._go("line", b"\0", "unreadable")
        self._end_line("line", "head_end")
        self._word("line", "content-length", "length name", "skip_line")
        self._word("line", "transfer-encoding", "encoding name", "skip_line")
        for name, to in (("length name", "length"), ("encoding name", "encoding")):
            self._otherwise(name, "skip_line")
            self._go(name, _BLANKS, "unreadable")
            self._go(name, b":", to)

    def _length(self) -> None:
        self._go("length", _BLANKS, "before length")
        self._go("before length", _BLANKS, "before length")
        for state in ("length", "before length", "length_digit"):
            self._go(state, _DIGITS, "length_digit")
        self._go("length_digit", _BLANKS, "after length")
        self._go("after length", _BLANKS, "after length")
        for state in ("length_digit", "after length"):
            self._end_line(state)

    def _transfer_encoding(self) -> None:
        """ "chunked" must be the last coding: only then is the end known (RFC 9112, 6.3)."""
        self._go("encoding", _NO_CONTROLS, "other coding")
        self._go("encoding", b" \t,", "encoding")
        self._go("other coding", _NO_CONTROLS + b"\t", "other coding")
        self._go("other coding", b",", "encoding")
        self._word("encoding", "chunked", "chunked", "other coding")
        for word in range(1, len("chunked")):
            state = f"encoding:{'chunked'[:word]}"
            self._go(state, b",", "encoding")
            self._go(state, bytes(set(range(32)) - set(_BLANKS)), "unreadable")
        self._go("chunked", _BLANKS, "after chunked")
        self._go("after chunked", _BLANKS, "after chunked")
        for state in ("chunked", "after chunked"):
            self._end_line(state)

    def _chunks(self) -> None:
        """RFC 9112, 7.1."""
        for state in ("size", "size_digit"):
            self._go(state, _HEXADECIMAL, "size_digit")
        self._go("size_digit", b"; \t", "extension")
        self._go("extension", _NO_CONTROLS + b"\t", "extension")
        for state in ("size_digit", "extension"):
            self._end_line(state, "size_end")
        self._end_line("data_end", "size")
        self._go("trailer", _NO_CONTROLS + b"\t", "trailer line")
        self._end_line("trailer", "message_end")
        self._go("trailer line", _NO_CONTROLS + b"\t", "trailer line")
        self._end_line("trailer line", "trailer")
