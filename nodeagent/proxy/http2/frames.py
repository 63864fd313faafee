"""HTTP/2 frames as they stand on the wire (RFC 9113 sections 4, 6 and 7). No state."""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.permit import PREFACE as PREFACE

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITISED: Final = 32

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
CONNECT_ERROR: Final = 10
ENHANCE_YOUR_CALM: Final = 11
INADEQUATE_SECURITY: Final = 12
HTTP_1_1_REQUIRED: Final = 13

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

FRAME_HEAD: Final = 9
"""Bytes of a frame before its payload."""
DEFAULT_WINDOW: Final = 65535
LARGEST_WINDOW: Final = (1 << 31) - 1
LARGEST_STREAM: Final = (1 << 31) - 1
DEFAULT_FRAME: Final = 16384
LARGEST_FRAME: Final = (1 << 24) - 1
DEFAULT_TABLE: Final = 4096


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Return the nine bytes before a payload of *length* bytes."""
    return (length << 48 | kind << 40 | flags << 32 | stream).to_bytes(FRAME_HEAD, "big")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a whole frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def settings(pairs: tuple[tuple[int, int], ...]) -> bytes:
    """Return a SETTINGS frame with *pairs* of identifier and value."""
    payload = b"".join([key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs])
    return frame(SETTINGS, 0, 0, payload)


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))


def goaway(last: int, code: int, words: bytes) -> bytes:
    """Return a GOAWAY: streams above *last* were not looked at; *words* are for whoever debugs it."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + words)


def write_block(parts: list[bytes], stream: int, block: bytes, flags: int, largest: int) -> None:
    """Add the header *block* of *stream* to *parts*: one frame, and CONTINUATIONs where it is longer
    than *largest* bytes.
    """
    if len(block) <= largest:
        parts.append(frame_head(len(block), HEADERS, flags | END_HEADERS, stream))
        parts.append(block)
        return
    parts.append(frame_head(largest, HEADERS, flags, stream))
    parts.append(block[:largest])
    for at in range(largest, len(block), largest):
        piece = block[at : at + largest]
        last = at + largest >= len(block)
        parts.append(frame_head(len(piece), CONTINUATION, END_HEADERS if last else 0, stream))
        parts.append(piece)
