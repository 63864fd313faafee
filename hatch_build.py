"""The wheel's own build step: what `make wheel` has compiled travels in it.

Modules compiled by mypyc make it a wheel for one platform and one Python; without them it is one of
sources, for any. BPF programs compiled ahead go with the folder of their C, beside which they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


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
