"""What the HTTP/2 connections of one pod make a worker hold, and who gives way where it is too much.

Theory of operation
===================

Whoever takes nothing makes the proxy hold what waits for him. Beyond the bound of a pod's
connections those who hold most give way, never who brings the next byte: else one peer that fills
all and stands still would end every stream of the others.

What waits belongs to a party: the identity at the other end, or its address where it proved none,
on however many connections. The party for which most waits loses a stream, and again whichever it
is then, until a part of the bound is free: those that have stood still first, of them the largest.
A stream whose windows and transport are open holds nothing in this sense, its bytes only wait for
their turn. All others that are counted somebody can give up.

So many bytes have to come before all streams are looked at once more: a look costs little for each.
"""

from __future__ import annotations

import heapq
from typing import Final

from mypy_extensions import trait

STANDS_SECONDS: Final = 1.0
"""Of what waits nothing was taken for so long: then it gives way before what moves."""
FREED: Final = 16
"""This part of what may be held is free after a look, or has come anew before the next one."""


@trait
class Holder:
    """A connection, or a stream, that makes the worker hold bytes."""

    def party(self) -> str:
        """Return who is at its other end."""
        raise NotImplementedError

    def backlogs(self) -> list[Backlog]:
        """Return what waits for somebody who takes none of it now."""
        raise NotImplementedError

    def give_up(self, stream: int) -> None:
        """End the stream of this number; 0: all of the connection, whose transport takes nothing. What it
        held is let go at once; what has ended meanwhile, another one's end took along.
        """
        raise NotImplementedError


class Backlog:
    """What one stream holds, or a transport."""

    def __init__(self, holder: Holder, stream: int, size: int, *, stands: bool) -> None:
        """*stream*: its number; 0: the transport. *size*: bytes. *stands*: none of it was taken for a while."""
        self.holder = holder
        self.stream = stream
        self.size = size
        self.stands = stands


class HeldBytes:
    """Bytes that wait for somebody to take them, on all connections of a pod, towards it and from
    it: of bodies, and of whatever a transport keeps.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.widened = 0
        """Bytes that peers may send of streams beyond their first windows."""
        self.kept = 0
        """Bytes of requests that were sent, and are kept since they may have to be sent once more."""
        self.alarm = 0
        """Beyond so many bytes somebody gives way."""
        self._holders: dict[Holder, None] = {}

    def enter(self, holder: Holder, most: int) -> None:
        """Count *holder* among those of which all may hold *most* bytes."""
        self.alarm = max(self.alarm, most)
        self._holders[holder] = None

    def leave(self, holder: Holder) -> None:
        """*holder* holds nothing any more."""
        self._holders.pop(holder, None)

    def relieve(self, most: int) -> None:
        """More than *most* bytes are held: have those give way who hold most."""
        parties = self._parties()
        ranks = [(-sum([each.size for each in backlogs]), party) for party, backlogs in parties.items()]
        heapq.heapify(ranks)
        part = most // FREED
        while self.bytes > most - part and ranks:
            weight, party = ranks[0]
            backlogs = parties[party]
            last = backlogs.pop()
            last.holder.give_up(last.stream)
            if backlogs:
                heapq.heapreplace(ranks, (weight + last.size, party))
            else:
                heapq.heappop(ranks)
        self.alarm = max(most, self.bytes + part)

    def _parties(self) -> dict[str, list[Backlog]]:
        """Return what waits for each party, what gives way first last."""
        parties: dict[str, list[Backlog]] = {}
        for holder in self._holders:
            backlogs = holder.backlogs()
            if backlogs:
                parties.setdefault(holder.party(), []).extend(backlogs)
        for each in parties.values():
            each.sort(key=_rank)
        return parties


def _rank(backlog: Backlog) -> tuple[bool, int]:
    return backlog.stands, backlog.size
