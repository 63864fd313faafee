"""The lines that all shippers read: JSON of 205 bytes as applications write it, numbered."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

LineKind = Literal["plain", "cri"]
"""As a file has it, or within a container runtime's format, each tenth line on stderr."""
MARKER: Final = b"zqseq"
"""A member that every line has, and nothing else that is sent."""
LINE_BYTES: Final = 205
_LEVELS: Final = ("info", "warn", "error", "debug")
_HASH: Final = 2654435761
_END: Final = '"}\n'
_BATCH: Final = 10_000


def line(number: int, kind: LineKind) -> bytes:
    """Return line *number* with its end; a plain one has LINE_BYTES."""
    time = f"2026-11-28T21:{number // 60_000 % 60:02}:{number // 1000 % 60:02}"
    body = (
        f'{{"time":"{time}.{number % 1_000_000:06}Z","level":"{_LEVELS[number & 3]}","zqseq":{number + 100_000_000},'
        f'"msg":"order accepted","path":"/api/v1/orders/{number % 9_999_999:07}","status":200,'
        f'"duration_ms":{number % 97 + 1}.{number % 1000:03},"user":"u-{number % 999_999:06}","trace":"'
    )
    trace = f"{number * _HASH & 0xFFFFFFFFFFFF:x}"
    text = f"{body}{trace.zfill(LINE_BYTES - len(body) - len(_END))}{_END}"
    if kind == "cri":
        stream = "stdout" if number % 10 else "stderr"
        text = f"{time}.{number % 1_000_000_000:09}Z {stream} F {text}"
    return text.encode()


def write(path: Path, count: int, kind: LineKind) -> None:
    """Write *count* lines to *path*."""
    with path.open("wb") as out:
        for first in range(0, count, _BATCH):
            out.write(b"".join([line(number, kind) for number in range(first, min(count, first + _BATCH))]))
