"""A machine's units and their networks, as a test says they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nodeagent.errors import KernelError
from nodeagent.services.as_pods import Network
from nodeagent.services.units import Unit

GONE = Unit("", "not-found", "inactive", 0, "", "")


class FakeUnits:
    """Stands in for ``units.Systemctl``, and for the kernel's side of namespaces."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}
        self.networks: dict[str, Network] = {}
        self.silent = ""
        self.looks = 0

    def put(
        self, name: str, *, state: str = "active", namespace: str = "", pid: int = 7, loaded: str = "loaded"
    ) -> None:
        self.units[name] = Unit(name, loaded, state, pid, f"/system.slice/{name}", namespace, ("legacy",))

    async def look(self, names: Sequence[str]) -> dict[str, Unit]:
        self.looks += 1
        if self.silent:
            raise KernelError(self.silent)
        return {name: self.units.get(name, GONE) for name in names}

    def network(self, path: Path) -> Network:
        try:
            return self.networks[str(path)]
        except KeyError:
            raise KernelError(f"{path}: the network namespace cannot be entered") from None
