"""Which of the formats that a thing can be told in a client gets: its Accept header, read as RFC
9110 section 12.5.1 says. Pure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_NOT_OURS: Final = frozenset({"q", "escaping"})
"""Parameters of a range that say nothing about a format: its weight, and how Prometheus 3 would
have names written that none of ours is.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One format of an answer; *body* makes it, when it is the one."""

    content_type: str
    quality: float
    """How much the server prefers it, 0 to 1."""
    body: Callable[[], Awaitable[bytes | Iterable[bytes]]]


@dataclass(frozen=True, slots=True)
class _Media:
    """A media type, or a range of them (``text/*``)."""

    kind: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> _Media:
        kind, *rest = (part.strip().lower() for part in text.split(";"))
        named = (part.partition("=") for part in rest)
        return cls(kind, {name.strip(): value.strip().strip('"') for name, _, value in named})

    def weight(self) -> float:
        """Return how much the client prefers the range, 0 (not at all, or not a number) to 1."""
        try:
            weight = float(self.parameters.get("q", "1"))
        except ValueError:
            return 0.0
        return weight if 0 <= weight <= 1 else 0.0

    def precision(self, other: _Media) -> int:
        """Return how exactly this range means *other*; 0: not at all."""
        wanted = {name: value for name, value in self.parameters.items() if name not in _NOT_OURS}
        if any(other.parameters.get(name) != value for name, value in wanted.items()):
            return 0
        if self.kind == other.kind:
            return 3 + len(wanted)
        if self.kind == f"{other.kind.partition('/')[0]}/*":
            return 2
        return int(self.kind == "*/*")


def preferred(accept: str, variants: Sequence[Variant]) -> Variant:
    """Return the one of *variants* that the client prefers, who sent *accept* ("": no such header).

    A client's weight is multiplied by the server's own. The first one is for clients that say
    nothing, that prefer several equally, or that would take none: it is of more use than a refusal.
    """
    ranges = [_Media.parse(part) for part in accept.split(",") if part.strip()]
    return max(variants, key=lambda variant: _weight(variant, ranges))


def _weight(variant: Variant, ranges: Sequence[_Media]) -> float:
    if not ranges:
        return variant.quality
    own = _Media.parse(variant.content_type)
    precision, weight = max((each.precision(own), each.weight()) for each in ranges)
    return variant.quality * weight if precision else 0.0
