"""Where the running kernel keeps a member of one of its structs, by its own description of its
types (BTF).

Written here: no library of Python's reads BTF; bpftool would be 2 MB and a process more for these 60
lines, which take 23 ms, once.

Source: Documentation/bpf/btf.rst, sections 2 and 3: types in the order of their numbers, names in a
table behind them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
_HEADER: Final = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_MAGIC: Final = 0xEB9F
_STRUCT: Final = 4
_BIT: Final = 0xFFFFFF
"""Of a member's place; above it is the width of a bit field."""
_BEHIND: Final = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes behind a type of this kind (INT, ARRAY, VAR, DECL_TAG)."""
_BEHIND_EACH: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes behind it for each of its parts (STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64)."""


def offset(structure: str, *members: str, path: Path = VMLINUX) -> int:
    """Return at which byte of *structure* the last of *members* begins, each of which is in the one
    before it.

    Raises KernelError where the kernel does not describe its types, or has no such member.
    """
    try:
        raw = path.read_bytes()
        magic, _, _, header, types_at, types_size, names_at, names_size = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise ValueError("no BTF")
        types = raw[header + types_at :][:types_size]
        names = raw[header + names_at :][:names_size]
        return _offset(types, names, structure, members)
    except OSError as error:
        raise KernelError(
            f"{path}: the kernel's types cannot be read: {error.strerror}; it needs CONFIG_DEBUG_INFO_BTF"
        ) from None
    except (ValueError, struct.error, IndexError) as error:
        raise KernelError(f"{path}: {'.'.join((structure, *members))} is not in the kernel's types: {error}") from None


def _offset(types: bytes, names: bytes, structure: str, members: tuple[str, ...]) -> int:
    wanted = names.index(b"\0%b\0" % structure.encode()) + 1
    # places: of each type by its number, as far as was read; 0 is void
    places = [0]
    end = 0
    bits = 0
    place = -1
    kind = 0
    while place < 0:
        name, kind, size = _type(types, end)
        places.append(end)
        place = end if (name, kind) == (wanted, _STRUCT) else -1
        end = end + size
    for member in members:
        number, more = _member(types, place, names, member.encode())
        bits += more
        while len(places) <= number:
            places.append(end)
            end += _type(types, end)[2]
        place = places[number]
    return bits // 8


def _type(types: bytes, at: int) -> tuple[int, int, int]:
    """Return the name, the kind and the bytes of the type at *at*."""
    name, info, _ = _TYPE.unpack_from(types, at)
    kind = info >> 24 & 31
    return name, kind, _TYPE.size + _BEHIND.get(kind, 0) + _BEHIND_EACH.get(kind, 0) * (info & 0xFFFF)


def _member(types: bytes, at: int, names: bytes, wanted: bytes) -> tuple[int, int]:
    """Return the type of the member *wanted* of the struct at *at*, and its bit in it."""
    if _type(types, at)[1] != _STRUCT:
        raise ValueError(f"{wanted.decode()} is asked of what is no struct")
    for part in range(_TYPE.unpack_from(types, at)[1] & 0xFFFF):
        name, number, where = _MEMBER.unpack_from(types, at + _TYPE.size + _MEMBER.size * part)
        if names[name : names.index(b"\0", name)] == wanted:
            return number, where & _BIT
    raise ValueError(f"there is no {wanted.decode()}")
