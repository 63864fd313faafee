"""Which of the formats that a thing can be told in a client gets: its Accept header, read as RFC
9110 section 12.5.1 says. Pure.

Everybody may send one, to ports that are open to every pod, so what is read of it is bounded: no
header takes more than half a millisecond.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ACCEPT_BYTES: Final = 1024
"""Of an Accept header at most. Prometheus 3 with native histograms sends 310."""
ACCEPT_RANGES: Final = 32
"""In an Accept header at most. Prometheus 3 with native histograms sends 6."""
_NOT_OURS: Final = frozenset({"q", "escaping"})
"""Parameters of a range that say nothing about a format: its weight, and how Prometheus 3 would
have names written that none of ours is.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One format of an answer; *body* makes it, when it is the one."""

    content_type: str
    body: Callable[[], Awaitable[bytes | Iterable[bytes]]]


@dataclass(frozen=True, slots=True)
class _Media:
    """A media type."""

    kind: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> _Media:
        kind, *rest = (part.strip().lower() for part in text.split(";"))
        named = (part.partition("=") for part in rest)
        return cls(kind, {name.strip(): value.strip().strip('"') for name, _, value in named})


@dataclass(frozen=True, slots=True)
class _Range:
    """Media types that a client takes, or does not: one, or several (``text/*``)."""

    kind: str
    wanted: Mapping[str, str]
    """The parameters that a type must have."""
    weight: float
    """How much the client prefers them, 0 (not at all, or not a number) to 1."""

    @classmethod
    def parse(cls, text: str) -> _Range:
        media = _Media.parse(text)
        wanted = {name: value for name, value in media.parameters.items() if name not in _NOT_OURS}
        return cls(media.kind, wanted, _weight(media.parameters.get("q", "1")))

    def precision(self, media: _Media) -> int:
        """Return how exactly this range means *media*; 0: not at all."""
        if any(media.parameters.get(name) != value for name, value in self.wanted.items()):
            return 0
        if self.kind == media.kind:
            return 3 + len(self.wanted)
        if self.kind == f"{media.kind.partition('/')[0]}/*":
            return 2
        return int(self.kind == "*/*")


def preferred(accept: str, variants: Sequence[Variant]) -> Variant:
    """Return the first of *variants* that the client takes, who sent *accept* ("": no such header).

    *variants* are in the order of the server's preference. The client's own matters only where it
    is 0, which is "not acceptable". A client that takes none, or whose header is over ACCEPT_BYTES
    or ACCEPT_RANGES, gets the first: it is of more use than a refusal.
    """
    if len(accept) > ACCEPT_BYTES or accept.count(",") >= ACCEPT_RANGES:
        return variants[0]
    ranges = [_Range.parse(part) for part in accept.split(",") if part.strip()]
    return next((each for each in variants if _taken(_media(each.content_type), ranges)), variants[0])


def _taken(media: _Media, ranges: Sequence[_Range]) -> bool:
    """Say whether the one of *ranges* that means *media* most exactly takes it."""
    precision, weight = max(((each.precision(media), each.weight) for each in ranges), default=(0, 0.0))
    return precision > 0 and weight > 0


@lru_cache(maxsize=8)
def _media(content_type: str) -> _Media:
    """Return a variant's own type: there are few, and each is read once."""
    return _Media.parse(content_type)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
