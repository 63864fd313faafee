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


@dataclass(frozen=True, slots=True)
class Taken:
    """The sink has answered for each record: it has those that are not named here."""

    again: Sequence[int] = ()
    """Numbers of records that may be taken later: the sink is busy."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Numbers of records that it will never take, with its reason."""
    unnamed: int = 0
    """How many more it will never take without saying which: they are lost, and counted."""
    why: str = ""
    """What it says of those in ``again`` or ``unnamed``."""


@dataclass(frozen=True, slots=True)
class Untaken:
    """The sink took nothing, or did not say: the same again, later."""

    why: str
    """In words, with the likely cause and the next step."""
    after: float | None = None
    """Seconds that the sink asks to wait; None: as long as delivery thinks right."""
    under_way: bool = False
    """It may still take it: nothing but this very request may come next, or records are there twice."""
    partly: bool = False
    """It may be for some pods' records alone: of the same again it may take nothing for ever."""


@dataclass(frozen=True, slots=True)
class Indivisible:
    """The sink refuses the request as a whole and does not say for which record: it is halved and sent again, until
    what is refused is one record alone.
    """

    why: str
    too_large: bool = False
    """It is the size that it does not like: later requests are made smaller from the start."""
    unsendable: bool = False
    """It cannot even be encoded: one record alone is at fault itself, whatever the sink takes of others."""


Outcome: TypeAlias = Taken | Untaken | Indivisible


class LogSink(Protocol):
    """Somebody who takes records. One that raises has a bug: it says what went wrong by what it returns."""

    @property
    def name(self) -> str:
        """As the configuration names it."""

    @property
    def ordered(self) -> bool:
        """Whether it wants records in order: then one request is under way at a time."""

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as one request; pure."""

    async def send(self, payload: Payload) -> Outcome:
        """Send *payload* and wait for the answer."""

    async def close(self) -> None:
        """Give back what connections hold."""
