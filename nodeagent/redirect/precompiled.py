"""BPF programs that BCC compiled ahead, for nodes that carry no compiler and starts that wait for
none: `make setup` puts them beside the C sources as ``programs.json``, `make wheel` takes them along.

A program as BCC compiles it names two things of one node: the maps, by descriptors, and where that
kernel keeps what the bypass reads. Both are immediates of single instructions (struct bpf_insn: 8
bytes, the immediate in the last 4), which the file lists, and which are filled in here. Nothing
else depends on a kernel, since no program includes a kernel's headers.

The file is for exactly one text of the sources. After a change of those, or without the file, the
loader compiles with BCC.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nodeagent.errors import KernelError
from nodeagent.redirect import bypass, syscall

FILE: Final = "programs.json"
INSTRUCTION: Final = 8
IMMEDIATE: Final = 4
"""Where an instruction's immediate begins."""

Place = Literal["unread", "written"]


class LoadedProgram(Protocol):
    """A program in the kernel, as bcc has it."""

    @property
    def fd(self) -> int: ...


class Programs(Protocol):
    """All programs, compiled: by bcc just now, or ahead."""

    def load_func(self, func_name: str, prog_type: int, *, attach_type: int) -> LoadedProgram:
        """Load one into the kernel. Raises an exception with the kernel's words."""
        ...


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProgramText(_Record):
    """A program's instructions, in hexadecimal; by the number of an instruction, the map that its
    immediate stands for, or the place in the kernel's structs.
    """

    code: str
    maps: dict[int, str]
    places: dict[int, Place] = Field(default_factory=dict)


class CompiledPrograms(_Record):
    """The file. ``joined``: where sockets are joined past TCP; ``apart``: where they are not, and no
    program reads the kernel's memory.
    """

    sources: str
    """SHA-256 of what they were compiled from."""
    joined: dict[str, ProgramText]
    apart: dict[str, ProgramText]


def digest(source: Path) -> str:
    """Return the SHA-256 of all C files below *source*, with their names."""
    found = hashlib.sha256()
    for path in sorted(source.rglob("*.[ch]")):
        found.update(f"{path.relative_to(source)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def find(source: Path, maps: Path, joining: bypass.Joining) -> Programs | None:
    """Return the programs that were compiled ahead from exactly what *source* holds, to use the maps
    pinned in *maps*; None where there are none. Raises KernelError.
    """
    path = source / FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        compiled = CompiledPrograms.model_validate_json(text)
    except ValidationError as error:
        raise KernelError(f"{path}: {error.errors()[0]['msg']}: install the package again") from None
    if compiled.sources != digest(source):
        return None
    descriptors = {path.name: syscall.get(path) for path in maps.iterdir()}
    return Ahead(compiled.apart if joining.refusal else compiled.joined, descriptors, joining)


@dataclass(frozen=True, slots=True)
class _InKernel:
    fd: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """Programs compiled ahead, for one node: *maps* are descriptors by name, open as long as the process lives."""

    texts: Mapping[str, ProgramText]
    maps: Mapping[str, int]
    joining: bypass.Joining

    def load_func(self, func_name: str, prog_type: int, *, attach_type: int) -> LoadedProgram:
        """Load one into the kernel. Raises OSError with the verifier's last words."""
        code = filled(self.texts[func_name], self.maps, self.joining)
        return _InKernel(syscall.program_load(prog_type, attach_type, code, func_name))


def filled(text: ProgramText, maps: Mapping[str, int], joining: bypass.Joining) -> bytes:
    """Return the instructions of *text* with the descriptors of *maps* and the places of *joining* in them."""
    code = bytearray.fromhex(text.code)
    places = {"unread": joining.unread, "written": joining.written}
    for number, name in text.maps.items():
        struct.pack_into("=i", code, number * INSTRUCTION + IMMEDIATE, maps[name])
    for number, place in text.places.items():
        struct.pack_into("=i", code, number * INSTRUCTION + IMMEDIATE, places[place])
    return bytes(code)
