"""The interface of a sink, and what may become of what is sent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from nodeagent.logs.records import LogRecords


@dataclass(frozen=True, slots=True)
class Payload:
    """LogRecords as a sink sends them: one request."""

    batch: Sequence[LogRecords]
    """What is in it; its records are numbered through all of them, from 0."""
    body: bytes | Sequence[bytes]
    """Encoded, and compressed where the sink is told to."""
    only: Sequence[int] | None = None
    """The numbers of the records that are in it; None: all of the batch."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The sink has answered for each record: it has those that are not named here."""

    again: Sequence[int] = ()
    """Numbers of records that may be taken later: the sink is busy."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Numbers of records that it will never take, with its reason."""


@dataclass(frozen=True, slots=True)
class Untaken:
    """The sink took nothing, or did not say: the same payload again, later."""

    why: str
    """In words, with the likely cause and the next step."""
    after: float | None = None
    """Seconds that the sink asks to wait; None: as long as delivery thinks right."""


Outcome: TypeAlias = Taken | Untaken


class LogSink(Protocol):
    """Somebody who takes records. One that raises has a bug: it says what went wrong by what it returns."""

    @property
    def name(self) -> str:
        """As the configuration names it."""

    def encode(self, batch: Sequence[LogRecords], only: Sequence[int] | None = None) -> Payload:
        """Return *batch* as one request, or those of its records whose numbers are in *only*; pure."""

    async def send(self, payload: Payload) -> Outcome:
        """Send *payload* and wait for the answer."""

    async def close(self) -> None:
        """Give back what connections hold."""
