"""Programs compiled ahead: what depends on a node is found, and put in; a file for other sources is not used."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.redirect import precompile, precompiled
from nodeagent.redirect.bypass import Joining
from nodeagent.redirect.precompiled import CompiledPrograms, ProgramText

UNREAD, WRITTEN = precompile.MARKS


def instruction(operation: int, source: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", operation, source << 4, 0, immediate)


MAP = instruction(0x18, 1, 7) + instruction(0)
ADD = instruction(0x07, 0, UNREAD)
ADD_MORE = instruction(0x07, 0, WRITTEN)
CALL = instruction(0x85, 0, 1)
EXIT = instruction(0x95)


def test_what_depends_on_a_node_is_found_and_filled_in() -> None:
    text = precompile.text_of(MAP + CALL + ADD + ADD_MORE + EXIT, {7: "pods"})
    assert text.maps == {0: "pods"}
    assert text.places == {3: "unread", 4: "written"}
    filled = precompiled.filled(text, {"pods": 42}, Joining(unread=272, written=1600))
    expected = (
        instruction(0x18, 1, 42) + instruction(0) + CALL + instruction(0x07, 0, 272) + instruction(0x07, 0, 1600) + EXIT
    )
    assert filled == expected


def test_the_second_half_of_a_constant_is_no_place() -> None:
    text = precompile.text_of(instruction(0x18, 0, 5) + instruction(0, 0, WRITTEN) + EXIT, {})
    assert text.places == {}


def test_a_call_of_another_function_cannot_be_carried() -> None:
    with pytest.raises(KernelError, match="instruction 1 calls what is no helper"):
        precompile.text_of(CALL + instruction(0x85, 1, 3) + EXIT, {})


def _source(folder: Path, text: str = "int a;") -> Path:
    (folder / "include").mkdir(parents=True)
    (folder / "a.c").write_text(text)
    (folder / "include" / "b.h").write_text("")
    return folder


def test_a_file_is_used_for_its_own_sources_alone(tmp_path: Path) -> None:
    source = _source(tmp_path / "bpf")
    maps = tmp_path / "maps"
    maps.mkdir()
    assert precompiled.find(source, maps, Joining()) is None
    joined = {"connect4": ProgramText(code=ADD.hex(), maps={})}
    compiled = CompiledPrograms(sources=precompiled.digest(source), joined=joined, apart={})
    (source / precompiled.FILE).write_text(compiled.model_dump_json())
    found = precompiled.find(source, maps, Joining())
    assert isinstance(found, precompiled.Ahead)
    assert found.texts == joined
    refused = precompiled.find(source, maps, Joining(refusal="no"))
    assert isinstance(refused, precompiled.Ahead)
    assert refused.texts == {}
    (source / "include" / "b.h").write_text("int b;")
    assert precompiled.find(source, maps, Joining()) is None


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    source = _source(tmp_path / "bpf")
    (source / precompiled.FILE).write_text('{"sources": 1}')
    with pytest.raises(KernelError, match=r"programs\.json: .*install the package again"):
        precompiled.find(source, tmp_path, Joining())
