"""Which of several documents with the same policy is in force, wherever they stand. Pure.

A policy is known by kind, namespace and name. The cluster's own goes before those in folders, a
folder's file before another by name; and what is right goes before what only stands in for a wrong
document, so that a mistake in one place never displaces a good policy in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import NamedTuple

from nodeagent.resources.changes import Change, Refused
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import ObjectKey


class Origin(NamedTuple):
    """Where a policy stands; origins sort in the order in which they go before each other."""

    rank: int
    """0: the cluster's own state; 1: a file beside it."""
    file: PurePath


class Precedence:
    """Who holds which policies, and whose are in force."""

    def __init__(self) -> None:
        self._holders: dict[ObjectKey, dict[Origin, Policy]] = {}
        self._given: dict[Origin, frozenset[ObjectKey]] = {}

    def claim(self, origin: Origin, policies: Iterable[Policy]) -> list[Change]:
        """Take *policies* as all that *origin* holds, and return what that changes of what is in
        force: in order of their keys, a policy that was put, moved to another origin, or gone.
        """
        given = {policy.key: policy for policy in policies}
        changes: list[Change] = []
        for key in sorted(self._given.get(origin, frozenset()) | given.keys()):
            changes += self._claim_one(key, origin, given.get(key))
        if given:
            self._given[origin] = frozenset(given)
        else:
            self._given.pop(origin, None)
        return changes

    def displaced(self) -> Iterator[Refused]:
        """Return the documents that have no effect because the same policy stands elsewhere."""
        for key, holders in sorted(self._holders.items()):
            first, *others = _ordered(holders)
            why = f"metadata.name: {key[2]!r}: stands in {first.file} too, and that one is in force"
            for other in others:
                yield Refused(*key, str(other.file), why, False, displaced=True)

    def _claim_one(self, key: ObjectKey, origin: Origin, policy: Policy | None) -> Iterator[Change]:
        holders = self._holders.setdefault(key, {})
        before = _first(holders)
        held = holders.pop(origin, None)
        if policy is not None:
            holders[origin] = policy
        after = _first(holders)
        if after is None:
            del self._holders[key]
            if before is not None:
                yield Change(*key, None)
        elif after != before or (after == origin and policy != held):
            yield Change(*key, holders[after], str(after.file))


def _first(holders: Mapping[Origin, Policy]) -> Origin | None:
    return next(iter(_ordered(holders)), None)


def _ordered(holders: Mapping[Origin, Policy]) -> list[Origin]:
    """Return who holds a policy, the one that is in force first."""
    return sorted(holders, key=lambda origin: (bool(holders[origin].refused), origin))
