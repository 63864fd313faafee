"""Reading a file that others put there: bounded, and never anything but a regular file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nodeagent.errors import ResourceError


def content(path: Path, limit: int, *, links: bool) -> bytes:
    """Return the content of *path*, which may be a symbolic link where *links* says so.

    Waits for no pipe. Raises FileNotFoundError; ResourceError when it cannot be read, is no regular
    file or has more than *limit* bytes.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if links else flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ResourceError(f"cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        # before it becomes a file object, which a folder cannot be
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ResourceError(f"not a regular file of at most {limit} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)
