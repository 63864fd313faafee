"""A change of the snapshot as messages to the workers: as much of it in each as one packet carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, cast

import orjson

from nodeagent.channel import MESSAGE_BYTES
from nodeagent.mesh.entries import Entry
from nodeagent.mesh.entry_json import to_bytes
from nodeagent.messages import SnapshotPart
from nodeagent.wire import LARGEST_BYTES, Unchecked

LARGEST_ENTRY: Final = LARGEST_BYTES - MESSAGE_BYTES
"""Bytes of an entry as JSON: its message holds little else."""
REMOVALS_AT_ONCE: Final = 500
_FRAME_BYTES: Final = 1000
"""Of a message around its entries."""


def encoded(entry: Entry) -> bytes:
    """Return *entry* as it is sent. Raises TypeError, saying why it cannot be: documents are bounded, so
    that each can.
    """
    content = to_bytes(entry)
    if len(content) > LARGEST_ENTRY:
        raise TypeError(f"{len(content)} bytes, at most {LARGEST_ENTRY} are carried")
    return content


def parts(entries: Iterable[Entry], removals: Iterable[str], generation: int) -> Iterator[SnapshotPart]:
    """Split a change of the snapshot, which brings it to *generation*, into messages that fit a
    packet. Each but the last says that there is ``more``.
    """
    return parts_of(map(to_bytes, entries), removals, generation)


def parts_of(contents: Iterable[bytes], removals: Iterable[str], generation: int) -> Iterator[SnapshotPart]:
    """Split a change as :func:`parts` does; *contents*: its entries as they are sent."""
    last: SnapshotPart | None = None
    for upserts, gone in _split(contents, removals):
        if last is not None:
            yield replace(last, more=True)
        last = SnapshotPart(upserts, gone, generation, more=False)
    yield last or SnapshotPart([], (), generation, more=False)


def _split(contents: Iterable[bytes], removals: Iterable[str]) -> Iterator[tuple[list[Unchecked], tuple[str, ...]]]:
    """Yield upserts and removals, as much of them as one packet carries."""
    gone = tuple(removals)
    for at in range(0, len(gone), REMOVALS_AT_ONCE):
        yield [], gone[at : at + REMOVALS_AT_ONCE]
    upserts: list[Unchecked] = []
    size = 0
    for content in contents:
        if upserts and size + len(content) > MESSAGE_BYTES - _FRAME_BYTES:
            yield upserts, ()
            upserts = []
            size = 0
        upserts.append(cast(Unchecked, orjson.Fragment(content)))  # it is an object, once it is read
        size += len(content)
    if upserts:
        yield upserts, ()
