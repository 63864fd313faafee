"""bpf(2), setns(2) and mount(2) by ctypes, for the long-lived processes: they never import bcc.

One function per kernel command, raw bytes in and out. Every failure is an OSError with the kernel's
errno; the callers turn it into a KernelError that says what it means. Sources:
include/uapi/linux/bpf.h, kernel/bpf/syscall.c.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import Final

NUMBER: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}.get(
    platform.machine(), 321
)
_libc: Final = ctypes.CDLL(None, use_errno=True)

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = range(5)
PROG_LOAD = 5
OBJ_PIN = 6
OBJ_GET = 7
PROG_ATTACH = 8
PROG_DETACH = 9
PROG_GET_FD_BY_ID = 13
OBJ_INFO = 15
PROG_QUERY = 16
MAP_LOOKUP_AND_DELETE = 21
MAP_LOOKUP_BATCH = 24
LINK_CREATE = 28
LINK_UPDATE = 29
LINK_DETACH = 34

ANY: Final = 0
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000

_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64


class MapElement(ctypes.Structure):
    """attr of the BPF_MAP_*_ELEM commands; ``value`` is next_key for BPF_MAP_GET_NEXT_KEY."""

    _fields_ = [("map_fd", _u32), ("pad", _u32), ("key", _u64), ("value", _u64), ("flags", _u64)]


class _MapCreate(ctypes.Structure):
    _fields_ = [
        *((name, _u32) for name in ("type", "key_size", "value_size", "max_entries", "flags", "inner", "numa")),
        ("name", ctypes.c_char * 16),
        ("rest", _u32 * 12),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [(name, _u64) for name in ("in_batch", "out_batch", "keys", "values")] + [
        ("count", _u32),
        ("map_fd", _u32),
        ("element_flags", _u64),
        ("flags", _u64),
    ]


class _Object(ctypes.Structure):
    _fields_ = [("pathname", _u64), ("fd", _u32), ("flags", _u32)]


class _Info(ctypes.Structure):
    _fields_ = [("fd", _u32), ("size", _u32), ("info", _u64)]


class _Program(ctypes.Structure):
    _fields_ = [
        *((name, _u32) for name in ("type", "count")),
        *((name, _u64) for name in ("instructions", "license")),
        *((name, _u32) for name in ("log_level", "log_size")),
        ("log", _u64),
        *((name, _u32) for name in ("kernel", "flags")),
        ("name", ctypes.c_char * 16),
        *((name, _u32) for name in ("interface", "attach_type")),
    ]


class _Attach(ctypes.Structure):
    _fields_ = [("target", _u32), ("program", _u32), ("attach_type", _u32), ("flags", _u32), ("rest", _u32 * 12)]


class _Query(ctypes.Structure):
    _fields_ = [
        *((name, _u32) for name in ("target", "attach_type", "query_flags", "attach_flags")),
        ("programs", _u64),
        ("count", _u32),
        ("rest", _u32 * 9),
    ]


class _Link(ctypes.Structure):
    """LINK_CREATE: program, target, attach type, flags; LINK_UPDATE: link, new program, flags, old
    program; LINK_DETACH: link.
    """

    _fields_ = [("first", _u32), ("second", _u32), ("third", _u32), ("fourth", _u32), ("rest", _u32 * 12)]


def bpf(command: int, attr: ctypes.Structure) -> int:
    """Call bpf(2); return what it returns. Raises OSError."""
    result: int = _libc.syscall(NUMBER, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _own(fd: int) -> int:
    os.set_inheritable(fd, False)
    return fd


def map_create(kind: int, name: str, key_size: int, value_size: int, entries: int, flags: int) -> int:
    """Make a map; return its descriptor. Raises OSError."""
    return _own(bpf(MAP_CREATE, _MapCreate(kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15])))


def map_lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """Return the *size* bytes stored under *key*, or None. Raises OSError for anything but ENOENT."""
    keys = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(size)
    try:
        bpf(MAP_LOOKUP, MapElement(fd, 0, ctypes.addressof(keys), ctypes.addressof(value)))
    except FileNotFoundError:
        return None
    return value.raw


def map_held(fd: int, keys: Iterable[bytes], key_size: int, size: int) -> dict[bytes, bytes]:
    """Return the *size* bytes that are stored under each of *keys*, as far as they are there: by the same
    few buffers, or these would cost as much as the kernel does. Raises OSError.
    """
    buffer = ctypes.create_string_buffer(key_size)
    value = ctypes.create_string_buffer(size)
    attr = MapElement(fd, 0, ctypes.addressof(buffer), ctypes.addressof(value))
    found = {}
    for key in keys:
        buffer.raw = key
        try:
            bpf(MAP_LOOKUP, attr)
        except FileNotFoundError:
            continue
        found[key] = value.raw
    return found


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Store *value* under *key*. Raises OSError (E2BIG: the map is full)."""
    keys = ctypes.create_string_buffer(key, len(key))
    values = ctypes.create_string_buffer(value, len(value))
    bpf(MAP_UPDATE, MapElement(fd, 0, ctypes.addressof(keys), ctypes.addressof(values), flags))


def map_delete(fd: int, key: bytes) -> bool:
    """Delete *key*; return whether it was there. Raises OSError."""
    keys = ctypes.create_string_buffer(key, len(key))
    try:
        bpf(MAP_DELETE, MapElement(fd, 0, ctypes.addressof(keys)))
    except FileNotFoundError:
        return False
    return True


def map_next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """Return the key after *key* (None: the first), or None at the end. Raises OSError."""
    before = ctypes.create_string_buffer(key or b"", size)
    after = ctypes.create_string_buffer(size)
    try:
        bpf(
            MAP_NEXT_KEY, MapElement(fd, 0, ctypes.addressof(before) if key is not None else 0, ctypes.addressof(after))
        )
    except FileNotFoundError:
        return None
    return after.raw


_CHUNK_BYTES: Final = 512 << 10
"""Buffers of megabytes would stay with the process."""
_LEAST_CHUNK: Final = 64
"""The kernel gives a hash bucket whole or not at all (ENOSPC)."""


def map_items(fd: int, key_size: int, value_size: int, chunk: int = 4096) -> list[tuple[bytes, bytes]]:
    """Return a hash map's entries, a chunk a system call (BPF_MAP_LOOKUP_BATCH). Raises OSError."""
    items: list[tuple[bytes, bytes]] = []
    for count, keys, values in _batches(fd, key_size, value_size, chunk):
        found = ctypes.string_at(keys, count * key_size)
        held = ctypes.string_at(values, count * value_size)
        items += (
            (found[n * key_size : (n + 1) * key_size], held[n * value_size : (n + 1) * value_size])
            for n in range(count)
        )
    return items


def map_used(fd: int, key_size: int, value_size: int, chunk: int = 4096) -> int:
    """Return how many entries a hash map has. Raises OSError."""
    return sum(count for count, _, _ in _batches(fd, key_size, value_size, chunk))


def _batches(
    fd: int, key_size: int, value_size: int, chunk: int
) -> Iterator[tuple[int, ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]]:
    """Yield how many entries a chunk has, and the buffers with their keys and values, which the next one overwrites."""
    chunk = max(_LEAST_CHUNK, min(chunk, _CHUNK_BYTES // (key_size + value_size)))
    keys, values, cursor = (
        ctypes.create_string_buffer(size) for size in (key_size * chunk, value_size * chunk, max(key_size, 8))
    )
    attr = _Batch(0, ctypes.addressof(cursor), ctypes.addressof(keys), ctypes.addressof(values), chunk, fd)
    more = True
    while more:
        attr.count = chunk
        try:
            bpf(MAP_LOOKUP_BATCH, attr)
        except FileNotFoundError:  # the last chunk, which may hold entries
            more = False
        yield attr.count, keys, values
        attr.in_batch = ctypes.addressof(cursor)


def pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin an object into bpffs. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, _Object(ctypes.addressof(name), fd))


def get(path: str | os.PathLike[str]) -> int:
    """Open a pinned object; return its descriptor. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _own(bpf(OBJ_GET, _Object(ctypes.addressof(name))))


def info(fd: int, size: int = 80) -> bytes:
    """Return the first *size* bytes of the kernel's struct bpf_{map,prog,link}_info for *fd*. Raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    bpf(OBJ_INFO, _Info(fd, size, ctypes.addressof(buffer)))
    return buffer.raw


def infos(fds: Iterable[int], size: int = 80) -> list[bytes]:
    """Return what :func:`info` does, for each of *fds*. Raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    attr = _Info(0, size, ctypes.addressof(buffer))
    found = []
    for fd in fds:
        attr.fd = fd
        attr.size = size
        bpf(OBJ_INFO, attr)
        found.append(buffer.raw)
    return found


def map_value_size(fd: int) -> int:
    """Return the bytes of a map's values (struct bpf_map_info: type, id, key_size, value_size). Raises OSError."""
    return int.from_bytes(info(fd, 16)[12:16], sys.byteorder)


_LOG_BYTES: Final = 1 << 20


def program_load(kind: int, attach_type: int, instructions: bytes, name: str = "") -> int:
    """Load a program given as machine code; return its descriptor. Raises OSError, with the
    verifier's last words.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = _Program(
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        attach_type=attach_type,
    )
    attr.name = name.encode()[:15]
    try:
        return _own(bpf(PROG_LOAD, attr))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_verifier(attr)}") from None


def _verifier(attr: _Program) -> str:
    """Return what the verifier said at last about a program that was refused: tried once more, since
    a log costs time that only a refusal is worth.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attr.log_level = 1
    attr.log_size = _LOG_BYTES
    attr.log = ctypes.addressof(log)
    try:
        os.close(bpf(PROG_LOAD, attr))
    except OSError:
        pass
    said = log.value.decode(errors="replace").strip().splitlines()
    return "".join(f": {line}" for line in said[-3:-1])


def program_attach(program: int, target: int, attach_type: int, flags: int = 0) -> None:
    """Attach *program* to a map, in place of the one that is (BPF_PROG_ATTACH). Raises OSError."""
    bpf(PROG_ATTACH, _Attach(target, program, attach_type, flags))


def program_detach(program: int, target: int, attach_type: int) -> None:
    """Detach what :func:`program_attach` attached. Raises OSError."""
    bpf(PROG_DETACH, _Attach(target, program, attach_type))


def program_get(number: int) -> int:
    """Open a program by the kernel's number of it; return its descriptor. Raises OSError."""
    return _own(bpf(PROG_GET_FD_BY_ID, _Link(number)))


_QUERIED: Final = 64
"""Programs at one hook; more are not told (BPF_CGROUP_MAX_PROGS)."""


def program_query(target: int, attach_type: int, *, effective: bool = False) -> tuple[list[int], int]:
    """Return the numbers of the programs that are attached to a cgroup, and the flags with which they
    are; *effective*: of all that run there, in the order in which they run. Raises OSError.
    """
    numbers = (_u32 * _QUERIED)()
    attr = _Query(target, attach_type, int(effective), 0, ctypes.addressof(numbers), _QUERIED)
    bpf(PROG_QUERY, attr)
    return list(numbers[: attr.count]), int(attr.attach_flags)


BEFORE: Final = 1 << 3
"""BPF_F_BEFORE: in front of all others of a cgroup (Linux 6.17); older kernels say EINVAL."""


def link_create(program: int, target: int, attach_type: int, flags: int = 0) -> int:
    """Attach *program* to a cgroup or network namespace; return the link's descriptor. Raises OSError."""
    return _own(bpf(LINK_CREATE, _Link(program, target, attach_type, flags)))


def link_update(link: int, program: int) -> None:
    """Replace the link's program in one step: no connection sees neither (BPF_LINK_UPDATE). Raises OSError."""
    bpf(LINK_UPDATE, _Link(link, program))


def link_detach(link: int) -> None:
    """Detach, whoever else holds the link. Raises OSError."""
    bpf(LINK_DETACH, _Link(link))


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace *fd*. Raises OSError."""
    if _libc.setns(fd, kind):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare(kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into a new namespace. Raises OSError."""
    if _libc.unshare(kind):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: str, kind: str) -> None:
    """Mount a file system. Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
