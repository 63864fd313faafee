"""Write the ``*_pb2.py`` and ``*_pb2.pyi`` of this package's ``.proto`` files: ``python -m
nodeagent.protocols.generate [DIRECTORY]``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""What the paths in the ``.proto`` files are relative to."""
HERE: Final = Path(__file__).parent


def generate(target: Path) -> None:
    """Generate every module below *target*, in ``nodeagent/protocols``. Raises RuntimeError when
    the compiler (grpcio-tools) finds a fault.
    """
    import grpc_tools
    from grpc_tools import protoc

    known = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(ROOT)) for path in HERE.glob("*.proto"))
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{known}", f"--python_out={target}", f"--pyi_out={target}", *sources])
    if code:
        raise RuntimeError(f"protoc ended with {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
