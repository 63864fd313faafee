"""Since when a policy is in force: when every worker, and the kernel's maps, have acknowledged the
generation that brought it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nodeagent.resources.changes import AnyChange, Change
from nodeagent.resources.security import KINDS

Behind = Callable[[int], list[str]]
"""Who has not acknowledged a generation of the snapshot, in words."""


PolicyRow = dict[str, Any]
"""A row of ``nodeagent get policies``, JSON that ``Mesh.policies`` makes."""


class InForce:
    """The generation that brought each policy, by kind and ``namespace/name``."""

    def __init__(self) -> None:
        self._brought: dict[tuple[str, str], int] = {}

    def bring(self, changes: Iterable[AnyChange], generation: int) -> None:
        """Note that *generation* brings the policies among *changes*."""
        for change in changes:
            if isinstance(change, Change) and change.kind in KINDS:
                key = (change.kind, f"{change.namespace}/{change.name}")
                if change.object is not None:
                    self._brought[key] = generation
                else:
                    self._brought.pop(key, None)

    def tell(self, rows: list[PolicyRow], behind: Behind) -> list[PolicyRow]:
        """Add to *rows*, one a policy, whom each still waits for (``pending``); what waits for
        nobody alone is in force.
        """
        for row in rows:
            generation = self._brought.get((row["kind"], row["policy"]))
            row["pending"] = behind(generation) if generation is not None else []
            if row["pending"]:
                words = f"pending: {', '.join(row['pending'])}"
                row["state"] = words if row["state"] == "in force" else f"{row['state']}; {words}"
        return rows
