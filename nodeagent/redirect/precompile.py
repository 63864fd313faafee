"""``python -m nodeagent.redirect.precompile FILE``: compiles all BPF programs with BCC and writes
them so that a node without a compiler can load them: see precompiled.py.

For `make setup`. As root, since BCC compiles against maps that exist; they are gone afterwards.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeagent.config import MapSizes
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.redirect import bypass, hooks, loader, maps, pins
from nodeagent.redirect.precompiled import INSTRUCTION, CompiledPrograms, Place, ProgramText, digest

MARKS: Final[Mapping[int, Place]] = {0x5A17_E4D0: "unread", 0x5A17_E4D8: "written"}
"""Stand for the two places while compiling: numbers that nothing else in the programs has."""
_LOAD_MAP: Final = 0x18
"""BPF_LD | BPF_DW | BPF_IMM: of two instructions; with BPF_PSEUDO_MAP_FD as its source, a map."""
_PSEUDO_MAP: Final = 1
_CALL: Final = 0x85
"""BPF_JMP | BPF_CALL; its source says whether a helper is called (0) or something that only a
loader with relocations knows.
"""


def text_of(code: bytes, names: Mapping[int, str]) -> ProgramText:
    """Return a compiled program with what depends on the node listed; *names*: maps by descriptor.
    Raises KernelError for what cannot be carried over to another node.
    """
    found_maps: dict[int, str] = {}
    places: dict[int, Place] = {}
    whole = bytearray(code)
    second = False
    for number in range(len(code) // INSTRUCTION):
        operation, registers, _, immediate = struct.unpack_from("=BBhi", code, number * INSTRUCTION)
        source = registers >> 4
        if operation == _CALL and source:
            raise KernelError(f"instruction {number} calls what is no helper: inline the function")
        if operation == _LOAD_MAP and source == _PSEUDO_MAP:
            found_maps[number] = names[immediate]
        elif not second and immediate in MARKS:
            places[number] = MARKS[immediate]
        if number in found_maps or number in places:
            struct.pack_into("=i", whole, number * INSTRUCTION + 4, 0)
        second = operation == _LOAD_MAP
    return ProgramText(code=whole.hex(), maps=found_maps, places=places)


def compile_all(pinned: Path, joining: bypass.Joining) -> dict[str, ProgramText]:
    """Compile every program against the maps in *pinned*. Raises KernelError."""
    programs = loader.compile_programs(pinned, joining)
    from bcc import lib  # it can be imported, since the programs are compiled

    names = {lib.bpf_table_fd(programs.module, path.name.encode()): path.name for path in pinned.iterdir()}
    return {hook.name: text_of(programs.dump_func(hook.name.encode()), names) for hook in hooks.HOOKS}


def write(path: Path) -> None:
    """Compile and write *path*. Raises KernelError, OSError."""
    sizes = MapSizes(pods=1, connections=1, exclusions=1, endpoints=1, verdicts=1)
    unread, written = MARKS
    folder = pins.Pins(pins.BPFFS / f"nodeagent-precompile-{os.getpid()}")
    folder.make()
    try:
        maps.succeed(folder.programs, folder.maps, sizes)
        compiled = CompiledPrograms(
            sources=digest(loader.source_directory()),
            joined=compile_all(folder.maps, bypass.Joining(unread, written)),
            apart=compile_all(folder.maps, bypass.Joining(refusal="compiled ahead")),
        )
    finally:
        pins.cleanup(folder.directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compiled.model_dump_json())


def main() -> int:
    try:
        write(Path(sys.argv[1]))
    except (NodeagentError, OSError) as error:
        print(f"precompile: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
