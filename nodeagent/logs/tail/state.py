"""How far a file is read, in words and numbers, for those who ask."""

from __future__ import annotations

from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import NOWHERE
from nodeagent.logs.tail.interfaces import FileStatus
from nodeagent.logs.tail.log import FollowedLog


def status_of(log: FollowedLog, file: OpenFile, now: float) -> FileStatus:
    """Return what is known of *file*, one of *log*'s, at *now* of the tail's clock."""
    held = file.generation or file.original
    lag = 0 if file.compressed and not file.journal else log.unread_bytes(file)
    return FileStatus(
        source=log.source,
        name=file.name,
        id=held.id.decode() if held else "",
        size=file.size,
        read=held.read.offset if held else 0,
        settled=held.coverage.settled if held else 0,
        lag_bytes=lag,
        lag_seconds=now - file.unread_since if lag and file.unread_since is not None else 0.0,
        state=_state(log, file),
        why=file.failed,
    )


def _state(log: FollowedLog, file: OpenFile) -> str:
    if file.failed:
        return "failed"
    if file.done != NOWHERE:
        return "done"
    if file.generation is None:
        return "waiting"
    if log.blocked and log.unread(file):
        return "blocked"
    if file.removed is not None:
        return "removed"
    return "following" if file is log.contents.growing() else "rotated"
