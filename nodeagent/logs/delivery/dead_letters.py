"""Records that a sink will never take, in a file of the node with the sink's reason: one JSON object a
line, bounded, the oldest go first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from nodeagent.logs.disk import on_disk
from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.documents import documents, rows_of
from nodeagent.logs.sinks.rotating import RotatingFile

FILE_BYTES: Final = 16 << 20
KEPT_FILES: Final = 3
"""Besides the one that is written to."""
log = logging.getLogger("nodeagent.logs")


class DeadLetters:
    """One sink's."""

    def __init__(self, folder: Path, sink: str, most: int = FILE_BYTES) -> None:
        """*folder*: where the file ``SINK.jsonl`` is made; *most*: bytes at which it is renamed."""
        self._folder = folder
        self._file = RotatingFile(folder / f"{sink}.jsonl", most, KEPT_FILES)
        self._sink = sink
        self._lock = asyncio.Lock()
        self.trouble = ""
        """Why what the sink refuses is lost; empty: it is written."""
        self._told: set[str] = set()

    async def write(self, letters: Sequence[tuple[LogRecords, int, str]]) -> bool:
        """Write records, each given by its columns, row and reason; return whether they are on disk."""
        content = b"".join(self._line(records, row, why) for records, row, why in letters)
        try:
            async with self._lock:
                await on_disk(self._append, content)
        except OSError as error:
            if not self.trouble:
                log.error(
                    "sink %s: %d records that it refuses are lost, for %s cannot be written: %s; make room there, and "
                    "let the collector's user write",
                    self._sink, len(letters), self._file.path, error.strerror,
                )  # fmt: skip
            self.trouble = f"what it refuses is lost, for {self._file.path} cannot be written: {error.strerror}"
            return False
        self.trouble = ""
        self._tell(letters)
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.append(content)

    def _line(self, records: LogRecords, row: int, why: str) -> bytes:
        envelope = {
            "sink": self._sink,
            "reason": why,
            "file": records.file.decode("ascii", "replace"),
            "offset": records.offsets[row],
        }
        return orjson.dumps(envelope)[:-1] + b',"record":' + documents(rows_of(records, [row]))[0] + b"}\n"

    def _tell(self, letters: Sequence[tuple[LogRecords, int, str]]) -> None:
        """Say once for each pod that something of it is refused; the rest is in the file, and counted."""
        for records, _, why in letters:
            pod = f"{records.origin.namespace}/{records.origin.pod}"
            if pod not in self._told and len(self._told) < 1000:
                self._told.add(pod)
                log.warning(
                    "sink %s refuses records of pod %s, the first: %s; they are in %s",
                    self._sink,
                    pod,
                    why,
                    self._file.path,
                )
