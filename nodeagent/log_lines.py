"""The processes' own log: a record is one line, whatever the names in it, so that nobody who chooses
a name (of a pod, a file, a header) writes a record of their own.
"""

from __future__ import annotations

import logging
import select
import sys


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
