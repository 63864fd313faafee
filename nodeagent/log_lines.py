"""The processes' own log: a record is one line, whatever the names in it, so that nobody who chooses
a name (of a pod, a file, a header) writes a record of their own.
"""

from __future__ import annotations

import logging
import select
import sys
import time
from collections.abc import Callable
from typing import Final

SPARING_SECONDS: Final = 10.0
"""Between two warnings of a kind."""
MAX_KINDS: Final = 64
"""Of warnings that are told apart; those beyond count as one kind, until one that was heard of the longest
ago may be forgotten.
"""
_OTHERS: Final = ""


class OneLine(logging.Formatter):
    """Writes what is not printable in a message as Python does in a string; a traceback of this
    program keeps its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        if not record.message.isprintable():
            record.message = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in record.message)
        return super().formatMessage(record)


def to_stderr(pattern: str = "%(asctime)s %(levelname)s %(name)s: %(message)s") -> None:
    """Have this process log to its standard error, records of INFO and above, each as *pattern*
    (logging's %-style) says.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(pattern))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def say(log: logging.Logger, words: str, level: int = logging.ERROR) -> None:
    """Log *words* to standard error, unless whoever reads it does not: the supervisor waits for
    nobody, and a line that waits would end the heartbeat.
    """
    if select.select([], [sys.stderr], [], 0)[1]:
        log.log(level, words)


class SparingLog:
    """Warnings whose number others choose, as who dials does: of each kind one in SPARING_SECONDS, which
    says how many were left out since the last one. *now* is a monotonic clock in seconds.
    """

    def __init__(self, log: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._told: dict[str, tuple[float, int]] = {}
        """By kind: when the last one was written, and how many were not since."""

    def tell(self, kind: str, words: str, level: int = logging.WARNING) -> None:
        """Warn with *words*, or say them at *level*, unless something of this *kind* was written a moment ago."""
        now = self._now()
        if kind not in self._told and len(self._told) >= MAX_KINDS:
            oldest = next(iter(self._told))
            if now - self._told[oldest][0] < SPARING_SECONDS:
                kind = _OTHERS
            else:
                del self._told[oldest]
        since, left_out = self._told.pop(kind, (float("-inf"), 0))
        if now - since < SPARING_SECONDS:
            self._told[kind] = since, left_out + 1
            return
        self._told[kind] = now, 0
        self._log.log(level, "%s%s", words, f" (and {left_out} more like it)" if left_out else "")
