"""The access log of one worker: a request costs one append; lines are made in batches and written
by a thread.

The event loop never waits for the disk: what the writer cannot take in time is dropped and counted,
never queued without bound.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nodeagent.telemetry.log_format import Format, Record, formatter
from nodeagent.telemetry.log_writer import LogWriter

BATCH_RECORDS: Final = 64
"""Formatted at once: 0.1 ms of the event loop, which the request behind them hardly notices."""
HANDOVER_BYTES: Final = 65536
QUEUE_BYTES: Final = 8 << 20
INTERVAL_SECONDS: Final = 0.1


class AccessLog:
    """Appends records to *path* (``-``: standard output; empty: nowhere) in *kind*.

    Make it in the process that uses it, after the fork, and use it from one event loop: ``start``
    once that runs, ``log`` for each request (where ``enabled``: no need to build a record
    otherwise), ``close`` at the end. Raises ConfigError when the file cannot be opened.
    """

    def __init__(self, path: str, kind: Format = "text", queue_bytes: int = QUEUE_BYTES) -> None:
        self.enabled = bool(path)
        self._writer = LogWriter(path, queue_bytes) if path else None
        self._format = formatter(kind)
        self._records: list[Record] = []
        self._lines: list[bytes] = []
        self._count = self._size = self._refused = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Runs while something waits: a log of which nothing is asked wakes nobody."""

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._refused + (self._writer.dropped if self._writer else 0)

    def log(self, record: Record) -> None:
        """Take the record of one finished request or connection; see ``log_format.FIELDS``."""
        records = self._records
        records.append(record)
        if self._timer is None:
            self._set_timer()
        if len(records) >= BATCH_RECORDS:
            self._format_batch()

    def start(self) -> None:
        """From now on, on the running loop, hand over within INTERVAL_SECONDS what is logged."""
        self._loop = asyncio.get_running_loop()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._loop is not None:
            self._timer = self._loop.call_later(INTERVAL_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Hand everything logged so far to the writer; returns before it is on disk."""
        if self._records:
            self._format_batch()
        if self._lines:
            self._hand_over()

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Flush, and wait at most *timeout_seconds* for the writer."""
        self._loop = None
        if self._timer:
            self._timer.cancel()
        self.flush()
        if self._writer:
            self._writer.close(timeout_seconds)
            self._refused += self._writer.dropped
            self._writer = None

    def _format_batch(self) -> None:
        records = self._records
        self._records = []
        if self._writer is None:
            return
        lines = self._format(records)
        self._lines.append(lines)
        self._count += len(records)
        self._size += len(lines)
        if self._size >= HANDOVER_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._writer and not self._writer.put(b"".join(self._lines), self._count):
            self._refused += self._count
        self._lines = []
        self._count = 0
        self._size = 0
