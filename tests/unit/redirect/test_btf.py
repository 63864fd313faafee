"""Offsets from the kernel's own types, on a small file made as Documentation/bpf/btf.rst describes it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.redirect import btf

NAMES = b"\0sock\0backlog\0first\0flag\0int\0"
INT, STRUCT, UNION = 1, 4, 5


def name(text: str) -> int:
    return NAMES.index(f"\0{text}\0".encode()) + 1


def entry(called: int, kind: int, parts: int, size: int, behind: bytes) -> bytes:
    return struct.pack("=III", called, kind << 24 | parts, size) + behind


def member(text: str, number: int, bit: int, width: int = 0) -> bytes:
    return struct.pack("=III", name(text), number, width << 24 | bit)


TYPES = b"".join(
    (
        entry(name("int"), INT, 0, 4, bytes(4)),  # 1
        entry(name("sock"), UNION, 1, 4, member("first", 1, 0)),  # 2: another kind of the same name
        # 3
        entry(
            name("sock"),
            STRUCT,
            3,
            40,
            member("flag", 1, 3, width=1) + member("backlog", 4, 192) + member("first", 1, 64),
        ),
        entry(0, STRUCT, 2, 16, member("first", 1, 0) + member("flag", 1, 96)),  # 4, behind what refers to it
    )
)


def file(folder: Path, types: bytes = TYPES, magic: int = 0xEB9F) -> Path:
    path = folder / "btf"
    path.write_bytes(struct.pack("=HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(NAMES)) + types + NAMES)
    return path


@pytest.mark.parametrize(
    ("members", "offset"),
    [(("first",), 8), (("backlog",), 24), (("backlog", "first"), 24), (("backlog", "flag"), 36), (("flag",), 0)],
)
def test_an_offset_is_that_of_the_innermost_member(tmp_path: Path, members: tuple[str, ...], offset: int) -> None:
    assert btf.offset("sock", *members, path=file(tmp_path)) == offset


@pytest.mark.parametrize(
    ("structure", "members"),
    [("sock", ("int",)), ("socket", ("first",)), ("sock", ("first", "flag")), ("backlog", ("first",))],
    ids=str,
)
def test_what_is_not_there_is_named(tmp_path: Path, structure: str, members: tuple[str, ...]) -> None:
    with pytest.raises(KernelError, match=rf"btf: {'.'.join((structure, *members))} is not in the kernel's types: "):
        btf.offset(structure, *members, path=file(tmp_path))


def test_no_file_another_file_and_half_a_file(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.offset("sock", "first", path=tmp_path / "none")
    for path in (file(tmp_path, magic=1), file(tmp_path, TYPES[:60])):
        with pytest.raises(KernelError, match=r"sock\.backlog\.flag"):
            btf.offset("sock", "backlog", "flag", path=path)


def test_the_running_kernel() -> None:
    """The first member of struct sock is what it shares with request and timewait sockets."""
    assert btf.offset("sock", "__sk_common") == 0
    assert btf.offset("sock", "sk_backlog", "rmem_alloc") == btf.offset("sock", "sk_backlog") > 0
