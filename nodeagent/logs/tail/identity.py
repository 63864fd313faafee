"""By what a file is told from others: when it was born, what stands in it, and the id made of that."""

from __future__ import annotations

import ctypes
import functools
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeAlias

TAIL_BYTES: Final = 1024
"""So many bytes before an offset say whether it is the same content."""
FIRST_BYTES: Final = 1024
"""So much of the first line goes into the id."""

_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_BTIME_AT: Final = 80
"""``struct statx`` in the kernel's ``include/uapi/linux/stat.h``."""

FileKey: TypeAlias = tuple[int, int]
"""Device and number of an inode."""


@dataclass(frozen=True, slots=True)
class Inode:
    """A file of the node, as long as it is there: its number is given again, but not with the same birth."""

    device: int
    number: int
    birth: int
    """Nanoseconds since the epoch; 0: the file system does not say."""

    @property
    def key(self) -> FileKey:
        """What tells it from all files that are there now."""
        return self.device, self.number

    def is_still(self, now: Inode) -> bool:
        """Say whether it is the file that is *now* seen, as far as the file system says: a device may have another
        number after the node has started anew, and then the time of birth decides.
        """
        return self.may_be(now) and (self.device == now.device or bool(now.birth))

    def may_be(self, now: Inode) -> bool:
        """Say whether it may be the file that is *now* seen, if that holds the same: the file system does not say when
        files were born, and its device may have had another number.
        """
        return self.number == now.number and self.birth == now.birth


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def birth_of(descriptor: int) -> int:
    """Return when the file behind *descriptor* was made (statx(2), ``STATX_BTIME``), in nanoseconds since the
    epoch; 0 where the file system or the C library does not say.
    """
    found = ctypes.create_string_buffer(_STATX_SIZE)
    try:
        failed = _libc().statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, found)
    except AttributeError:
        return 0
    mask: int = struct.unpack_from("=I", found)[0]
    if failed or not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BTIME_AT)
    return int(seconds * 1_000_000_000 + nanoseconds)


def tail_hash(before: bytes | memoryview) -> bytes:
    """Return the hash of *before*: the up to ``TAIL_BYTES`` bytes before an offset."""
    return blake2b(before, digest_size=8).digest()


def generation_id(node: str, source: str, inode: Inode, truncated: int, first: bytes, process: str = "") -> bytes:
    """Return what records call a content: the same for the same file of the node, another for every other one.

    *truncated*: how often the file was truncated before; *first*: its first line, which tells contents of one
    file apart when that number was lost; *process*: which one has counted, where no other will know. Printable ASCII.
    """
    parts = (node, source, str(inode.device), str(inode.number), str(inode.birth), f"{truncated}{process}")
    text = "\0".join(parts).encode(errors="surrogateescape")
    return blake2b(text + b"\0" + first[:FIRST_BYTES], digest_size=12).hexdigest().encode()
