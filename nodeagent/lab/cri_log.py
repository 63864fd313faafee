"""What containers write, as a container runtime and the kubelet keep it: a folder a container, a file a
start (``0.log``, ``1.log``, …), a line of it ``TIME STREAM F|P TEXT``, rotated by size.

The format is the runtime's (``docs/kubelet-cri-logging.md`` of Kubernetes' design proposals; lines
longer than 16 KiB come in parts, as containerd cuts them), the rotation the kubelet's
(``containerLogMaxSize``, ``containerLogMaxFiles``): renamed to ``0.log.20240101-120000``, all but the
newest of those compressed, five files in all.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

MAX_BYTES: Final = 10 << 20
MAX_FILES: Final = 5
LINE_BYTES: Final = 16 << 10
"""A longer line is written in parts of so many bytes."""
PLAIN: Final = "plain.log"
"""Of a sidecar, in a lab: as it wrote it, and never rotated."""
_ROTATED: Final = re.compile(r"(\d+)\.log(?:\.(\d{8}-\d{6})(\.gz)?)?")
_STARTS_KEPT: Final = 5
"""The kubelet keeps two: a lab is there to be looked at."""


def encode(stream: bytes, data: bytes, nanoseconds: int, *, partial: bool = False) -> bytes:
    """Return *data*, whole lines or the last of a stream, as lines of *stream* written at that time since
    the epoch; *partial*: it is a part of one line, which goes on.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")  # as Go's RFC3339Nano
    head = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}{fraction}Z ".encode() + stream
    whole = head + b" F "
    part = head + b" P "
    if partial:
        return part + data + b"\n"
    lines = data.removesuffix(b"\n").split(b"\n")
    if len(data) <= LINE_BYTES:
        return b"".join([whole + line + b"\n" for line in lines])
    return b"".join([_long(line, whole, part) for line in lines])


def _long(line: bytes, whole: bytes, part: bytes) -> bytes:
    pieces = [line[start : start + LINE_BYTES] for start in range(0, len(line), LINE_BYTES)] or [b""]
    return b"".join([part + piece + b"\n" for piece in pieces[:-1]]) + whole + pieces[-1] + b"\n"


def decode(data: bytes) -> bytes:
    """Return what was written: the text of *data*'s lines, parts joined; what is no such line stays as it is."""
    texts = []
    for line in data.splitlines(keepends=True):
        fields = line.split(b" ", 3)
        if len(fields) < 4 or fields[1] not in (b"stdout", b"stderr") or fields[2][:1] not in b"FP":
            texts.append(line)
        else:
            texts.append(fields[3].rstrip(b"\n") if fields[2][:1] == b"P" else fields[3])
    return b"".join(texts)


def files(folder: Path) -> list[Path]:
    """Return the files of a container's *folder*, the oldest first."""
    try:
        names = [match for name in os.listdir(folder) if (match := _ROTATED.fullmatch(name))]
    except FileNotFoundError:
        return []
    names.sort(key=lambda match: (int(match[1]), match[2] or "~", match[3] or ""))
    return [folder / match[0] for match in names] or [each for each in (folder / PLAIN,) if each.exists()]


def next_file(folder: Path) -> Path:
    """Make the file of a container that starts and return it; those of its earliest starts go. Raises OSError."""
    there = [(int(match[1]), path) for path in files(folder) if (match := _ROTATED.fullmatch(path.name))]
    numbers = sorted({number for number, _ in there})
    for number, path in there:
        if number in numbers[: 1 - _STARTS_KEPT]:
            path.unlink(missing_ok=True)
    path = folder / f"{numbers[-1] + 1 if numbers else 0}.log"
    folder.mkdir(parents=True, exist_ok=True)
    path.touch(0o640)
    return path


def rotate(path: Path, seconds: int) -> list[Path]:
    """Rename *path*, at that time since the epoch, and remove the oldest rotated ones; return those that are to be
    compressed. Nothing happens where that second's name is taken: kubelets look every ten seconds.
    """
    name = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}")
    if name.exists() or name.with_name(f"{name.name}.gz").exists():
        return []
    rotated = [each for each in files(path.parent) if each.name.startswith(f"{path.name}.")]
    for each in rotated[: max(0, len(rotated) - (MAX_FILES - 2))]:
        each.unlink(missing_ok=True)
    path.rename(name)
    return [each for each in rotated[-(MAX_FILES - 2) :] if each.suffix != ".gz"]


def compress(path: Path) -> None:
    """Put a compressed file in the place of *path*, whole or not at all; one that was removed meanwhile is none."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with path.open("rb") as plain, gzip.open(temporary, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(plain, packed, 1 << 18)
        os.rename(temporary, path.with_name(f"{path.name}.gz"))
        path.unlink()
    except OSError:  # the pod has gone with its folder, or the disk is full
        temporary.unlink(missing_ok=True)


class LogReader:
    """Reads what a container has written, and what it goes on writing, over rotations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[int, BinaryIO] = {}
        """Open as long as they have a name: until then no other file can have the same inode."""
        self._begun = False

    def read(self) -> Iterator[bytes]:
        """Yield whole lines, as they stand in the files, that were not read yet; the files' order is that of time."""
        there = set()
        for path in files(self._folder):
            if path.suffix == ".gz":
                if not self._begun:
                    with suppress(FileNotFoundError), gzip.open(path) as packed:
                        yield packed.read()
                continue
            with suppress(FileNotFoundError):
                there.add(inode := path.stat().st_ino)
                if inode not in self._held:
                    self._held[inode] = path.open("rb")
                yield from _lines(self._held[inode])
        self._begun = True
        for inode in self._held.keys() - there:
            self._held.pop(inode).close()

    def close(self) -> None:
        """Give back the files."""
        for each in self._held.values():
            each.close()
        self._held.clear()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(1 << 20):
        whole = piece.rfind(b"\n") + 1
        file.seek(whole - len(piece), os.SEEK_CUR)
        if not whole:
            return
        yield piece[:whole]


def text(folder: Path) -> str:
    """Return all that the container of *folder* has written and that is kept."""
    reader = LogReader(folder)
    try:
        return decode(b"".join(reader.read())).decode(errors="replace")
    finally:
        reader.close()


def tail(folder: Path, lines: int = 8) -> str:
    """Return the last *lines* that the container of *folder* has written, for an error message."""
    return "\n".join(text(folder).splitlines()[-lines:])
