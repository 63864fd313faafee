"""The positions file: how far every generation is settled, and how it is recognized after a restart.

Written whole, under another name, synced and renamed; its first line has a version and the rest's hash.
One that is torn, of another version, no positions file or cannot be read is put aside as ``positions.refused``
and said: everything is then read from its beginning, and ids make that harmless.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from nodeagent.errors import NodeagentError
from nodeagent.logs.tail.coverage import Mark
from nodeagent.logs.tail.identity import Inode

VERSION: Final = 1
FILE: Final = "positions"
REFUSED: Final = "positions.refused"
LARGEST: Final = 256 << 20
"""Bytes that are read at most: a million entries."""
_WORD: Final = b"nodeagent-log-positions"
log = logging.getLogger("nodeagent.logs.tail.positions")


class PositionsError(NodeagentError):
    """The positions file cannot be written or is not one: names the file and what to do."""


class PositionEntry(msgspec.Struct, frozen=True, array_like=True):
    """One generation."""

    source: str
    device: int
    inode: int
    birth: int
    name: str
    """As its file was called last."""
    id: str
    """Empty: nothing of it was read yet."""
    truncated: int
    """How often the file was truncated before this content began."""
    begin: int
    """Where its first line begins: not 0 where a hole stands before."""
    offset: int
    checksum: int
    tail: bytes
    cuts: tuple[int, ...]
    """Where lines without an end are cut."""
    done: int
    """Not -1: a twin that has nothing new up to this size; nothing is read from it."""
    gone: bool
    """Whether this content is not in that file any more."""
    overwritten: bool
    """Whether it is gone since the file was truncated, so that a copy may hold it."""
    marks: tuple[tuple[int, int, bytes], ...] = ()
    """How it looks where it was read, beyond what is settled: offset, checksum and tail."""
    hollow: bool = False
    """Whether a hole stands in it, so that checksums behind it say nothing."""

    def where(self) -> Inode:
        """Return the file that it is, or was, in."""
        return Inode(self.device, self.inode, self.birth)

    def mark(self) -> Mark:
        """Return up to where it is settled."""
        return Mark(self.offset, self.checksum, self.tail)


def done_entry(source: str, inode: Inode, name: str, done: int) -> PositionEntry:
    """Return the entry of a file that has nothing new up to *done* bytes."""
    return PositionEntry(
        source=source,
        device=inode.device,
        inode=inode.number,
        birth=inode.birth,
        name=name,
        id="",
        truncated=0,
        begin=0,
        offset=0,
        checksum=0,
        tail=b"",
        cuts=(),
        done=done,
        gone=False,
        overwritten=False,
    )


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[PositionEntry])


def encoded(entries: Iterable[PositionEntry]) -> bytes:
    """Return the file that holds *entries*."""
    rest = _ENCODER.encode(list(entries))
    return b"%s %d %s\n%s" % (_WORD, VERSION, blake2b(rest, digest_size=16).hexdigest().encode(), rest)


def decoded(content: bytes) -> list[PositionEntry]:
    """Return the entries of a file's *content*; raise PositionsError with what is wrong with it."""
    head, _, rest = content.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 3 or words[0] != _WORD:
        raise PositionsError("it does not begin as a positions file does")
    if words[1] != b"%d" % VERSION:
        raise PositionsError(f"its version is {words[1][:20].decode(errors='replace')}, this program knows {VERSION}")
    if words[2] != blake2b(rest, digest_size=16).hexdigest().encode():
        raise PositionsError("its checksum does not fit: it is torn or was changed")
    try:
        return _DECODER.decode(rest)
    except msgspec.MsgspecError as error:
        raise PositionsError(f"its entries cannot be read: {error}") from None


class PositionsFile:
    """The file in its folder. Reading and writing block; nothing here is called by two threads at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.problem = ""
        """Why it could not be written the last time; empty: it could."""

    def read(self) -> list[PositionEntry]:
        """Return what was written last; nothing where there is no file, or a wrong one, which is put aside."""
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
                content = file.read(LARGEST + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._put_aside(f"it cannot be read: {error.strerror or error}")  # or it is overwritten within a second
            return []
        try:
            if len(content) > LARGEST:
                raise PositionsError(f"it is larger than {LARGEST} bytes")
            return decoded(content)
        except PositionsError as error:
            self._put_aside(str(error))
            return []

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name(REFUSED)
        try:
            self._path.replace(aside)
            kept = f"kept as {aside}"
        except OSError as error:
            kept = f"it could not be put aside ({error}) and will be overwritten"
        log.error(
            "%s: %s; %s. All files are read from their beginning; sinks that know ids store nothing twice",
            self._path,
            why,
            kept,
        )

    def write(self, entries: Iterable[PositionEntry]) -> bool:
        """Replace the file; return whether it is on disk. Says so when it begins to fail, and when it ends."""
        try:
            self._write(encoded(entries))
        except OSError as error:
            if not self.problem:
                log.error(
                    "%s: positions cannot be written: %s. Logs are read on; a restart would send again what came "
                    "since. Is the folder writable, and its disk not full? Tried again until it works",
                    self._path,
                    error,
                )
            self.problem = f"{self._path}: {error.strerror or error}"
            return False
        if self.problem:
            log.warning("%s: positions are written again", self._path)
        self.problem = ""
        return True

    def _write(self, content: bytes) -> None:
        fresh = self._path.with_name(f"{FILE}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(fresh, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
