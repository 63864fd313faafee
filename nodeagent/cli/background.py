"""A daemon begun in the background, by a command that returns when it works."""

from __future__ import annotations

import os
import sys
from typing import Final

FAILED: Final = "the daemon that was begun ended before it carried pods; what ran before goes on, and the log says why"


def begin() -> int:
    """Return in a process of its own, with the pipe to write to when it works; the calling process
    ends with status 0 then, with 1 where it ends before.

    The new process is nobody's child but the service manager's (or the nearest subreaper's), which
    it is told to follow.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if not between:
        os.close(reading)
        os.setsid()
        if os.fork():
            os._exit(0)
        return writing
    os.close(writing)
    os.waitpid(between, 0)
    if os.read(reading, 1):
        sys.exit(0)
    print(f"nodeagent: {FAILED}", file=sys.stderr)
    sys.exit(1)
