"""A change of the snapshot as messages to the workers: as much of it in each as one packet carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import orjson

from nodeagent.channel import MESSAGE_BYTES
from nodeagent.mesh.entries import Entry
from nodeagent.mesh.entry_json import to_json
from nodeagent.messages import SnapshotPart
from nodeagent.wire import LARGEST_BYTES, Unchecked

LARGEST_ENTRY: Final = LARGEST_BYTES - MESSAGE_BYTES
"""Bytes of an entry as JSON: its message holds little else."""
REMOVALS_AT_ONCE: Final = 500
_FRAME_BYTES: Final = 1000
"""Of a message around its entries."""


def unsendable(entry: Entry) -> str:
    """Return why *entry* cannot be sent; empty: it can. Documents are bounded, so that each can."""
    try:
        size = len(orjson.dumps(to_json(entry)))
    except TypeError as error:
        return str(error)
    return f"{size} bytes, at most {LARGEST_ENTRY} are carried" if size > LARGEST_ENTRY else ""


def parts(entries: Iterable[Entry], removals: Iterable[str], generation: int) -> Iterator[SnapshotPart]:
    """Split a change of the snapshot, which brings it to *generation*, into messages that fit a
    packet. Each but the last says that there is ``more``.
    """
    last: SnapshotPart | None = None
    for upserts, gone in _split(entries, removals):
        if last is not None:
            yield replace(last, more=True)
        last = SnapshotPart(upserts, gone, generation, more=False)
    yield last or SnapshotPart([], (), generation, more=False)


def _split(entries: Iterable[Entry], removals: Iterable[str]) -> Iterator[tuple[list[Unchecked], tuple[str, ...]]]:
    """Yield upserts and removals, as much of them as one packet carries."""
    gone = tuple(removals)
    for at in range(0, len(gone), REMOVALS_AT_ONCE):
        yield [], gone[at : at + REMOVALS_AT_ONCE]
    upserts: list[Unchecked] = []
    size = 0
    for entry in entries:
        value = to_json(entry)
        length = len(orjson.dumps(value))
        if upserts and size + length > MESSAGE_BYTES - _FRAME_BYTES:
            yield upserts, ()
            upserts = []
            size = 0
        upserts.append(value)
        size += length
    if upserts:
        yield upserts, ()
