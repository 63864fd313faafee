"""The configuration of a daemon with logs whose folders are all below one, to be uninstalled."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def document(folder: Path) -> dict[str, Any]:
    """Return agent.yaml of a daemon that has its folders below *folder*."""
    return {
        "node": "node1",
        "source": str(folder / "source"),
        "runtimeDirectory": str(folder / "run"),
        "redirect": {"cgroup": "/nowhere", "pinDirectory": str(folder / "pins")},
        "identity": {"caDirectory": str(folder / "ca")},
        "logs": {"stateDirectory": str(folder / "logs"), "sinks": [{"name": "all", "stdout": {}}]},
    }
