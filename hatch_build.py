"""The wheel's own build step: what `make wheel` has compiled travels in it.

Modules compiled by mypyc make it a wheel for one platform and one Python; without them it is one of
sources, for any. BPF programs compiled ahead go beside their C: where they are, a node needs no
compiler (nodeagent/redirect/precompiled.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = Path("build/programs.json")


class CompiledHook(BuildHookInterface):
    """Finds what is compiled in the checkout; an editable installation uses it where it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        include = build_data["force_include"]
        modules = [*root.glob("nodeagent/**/*.so"), *root.glob("*__mypyc*.so")]
        for module in modules:
            include[str(module)] = str(module.relative_to(root))
        if modules:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
        if (root / PROGRAMS).is_file():
            include[str(root / PROGRAMS)] = "nodeagent/bpf/programs.json"
