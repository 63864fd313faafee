"""How far Fluentd has read: its position files (``logs.fluentdPositions``), so that who takes over from it on a
node sends nothing twice.

A line is ``PATH TAB POSITION TAB INODE``, both in hexadecimal (``lib/fluent/plugin/in_tail/position_file.rb``);
a position of all ones is that of a file that is not watched any more. Fluentd writes in place for as long as it
lives. An inode's number is given again once its file is gone, so a position counts for a file that is older
than the last word of Fluentd's, and only where a line ends there. In doubt a file is read from its
beginning: what comes twice harms less than what is missing.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeagent.errors import shown
from nodeagent.logs.tail.identity import birth_of

MAX_BYTES: Final = 16 << 20
_LINE: Final = re.compile(rb"([^\t\n]+)\t([0-9a-fA-F]{1,16})\t([0-9a-fA-F]{1,16})")
_UNWATCHED: Final = 0xFFFFFFFFFFFFFFFF
log = logging.getLogger("nodeagent.logs")


@dataclass(frozen=True, slots=True)
class FluentdPosition:
    """How far one file was read."""

    offset: int
    written: int
    """When Fluentd wrote its positions last, in nanoseconds since the epoch."""
    path: bytes = field(default=b"", compare=False)
    """What it calls the file, which may be gone, or another one by now."""


def parse_positions(content: bytes, written: int) -> tuple[dict[int, FluentdPosition], int]:
    """Return inode -> position of a position file's *content*, and how many of its lines cannot be read."""
    found: dict[int, FluentdPosition] = {}
    wrong = 0
    for line in content.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            wrong += bool(line.strip())
            continue
        offset = int(match[2], 16)
        inode = int(match[3], 16)
        if offset != _UNWATCHED and offset and inode:
            found[inode] = FluentdPosition(offset, written, match[1])
    return found, wrong


def read_positions(paths: Iterable[Path]) -> dict[int, FluentdPosition]:
    """Return inode -> position of the files *paths*; what cannot be read is said, and is as if it were not there."""
    found: dict[int, FluentdPosition] = {}
    for path in paths:
        try:
            # A pod that shares the folder may have left a FIFO there, which nobody may ever write to.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                content = file.read(MAX_BYTES)
                written = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            log.info("logs.fluentdPositions: %s is not there: Fluentd has left none on this node", path)
            continue
        except OSError as error:
            log.warning(
                "logs.fluentdPositions: %s cannot be read (%s): its files are read from their beginning",
                path,
                error.strerror,
            )
            continue
        positions, wrong = parse_positions(content, written)
        found |= positions
        if wrong:
            log.warning("logs.fluentdPositions: %s: %d lines are no positions, and are left out", path, wrong)
        log.info("logs.fluentdPositions: %s: %d files, as far as Fluentd has read them", path, len(positions))
    return found


def start_of(descriptor: int, positions: Mapping[int, FluentdPosition]) -> int:
    """Return up to where the file behind *descriptor* was read by Fluentd; 0: it was not, or that is in doubt."""
    if not positions:
        return 0
    status = os.fstat(descriptor)
    position = positions.get(status.st_ino)
    if position is None or position.offset > status.st_size:
        return 0
    if _is_elsewhere(position.path, status):
        return 0  # another file system has a file of that number, and Fluentd read that one
    birth = birth_of(descriptor)
    if not 0 < birth <= position.written:
        log.warning(
            "inode %d is not sure to be the file that Fluentd read: it is read from its beginning", status.st_ino
        )
        return 0
    if os.pread(descriptor, 1, position.offset - 1) != b"\n":
        log.warning("inode %s: no line ends where Fluentd has read to: it is read anew", shown(status.st_ino))
        return 0
    return position.offset


def starts_of(
    files: Iterable[tuple[str, int]], positions: Mapping[int, FluentdPosition], words: dict[str, int]
) -> dict[int, int]:
    """Return, by descriptor, up to where Fluentd has read each of *files*: its log and its descriptor.

    Fluentd forgets what was rotated, so what stands beside a file that it has a position of, and was neither changed
    nor put there since its last word, was read whole. *words* has those last words by log, for files that come later,
    and gets more.
    """
    logs = {descriptor: log for log, descriptor in files}
    if not positions:
        return dict.fromkeys(logs, 0)
    starts = {descriptor: start_of(descriptor, positions) for descriptor in logs}
    for descriptor, start in starts.items():
        if start:
            words[logs[descriptor]] = positions[os.fstat(descriptor).st_ino].written
    for descriptor, log in logs.items():
        status = os.fstat(descriptor)
        # Whoever moves a file there, or unpacks it, may set its mtime to any time; its ctime is the kernel's.
        touched = max(status.st_mtime_ns, status.st_ctime_ns)
        if not starts[descriptor] and status.st_ino not in positions and touched < words.get(log, 0):
            starts[descriptor] = status.st_size
    return starts


def _is_elsewhere(path: bytes, status: os.stat_result) -> bool:
    """Say whether *path* is a file with the inode of *status*, and on another device."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return found.st_ino == status.st_ino and found.st_dev != status.st_dev
