"""Amounts of CPU and memory, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of CPU, in cores, and of memory, in bytes."""

    cores: Fraction = Fraction(0)
    memory: Fraction = Fraction(0)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cores + other.cores, self.memory + other.memory)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cores - other.cores, self.memory - other.memory)

    def __mul__(self, count: int) -> Amount:
        return Amount(self.cores * count, self.memory * count)

    def json(self) -> dict[str, float | int]:
        """Return the amount as JSON: cores to the nanocore, whole bytes."""
        return {"cores": round(float(self.cores), 9), "bytes": round(self.memory)}


NOTHING: Final = Amount()
