"""What is worked out once for all of whom it comes out the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

_Result = TypeVar("_Result")


class Alike:
    """Results by what they rest on, for as long as nothing else changes: a thousand pods with the same
    labels cost as much as one, and a thousand Services with the same selector.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, object] = {}

    def once(self, rests_on: Hashable, make: Callable[[], _Result]) -> _Result:
        """Return what *make* returned the first time that it was asked for what *rests_on* this; its first
        part says what it is.
        """
        try:
            return cast(_Result, self._known[rests_on])
        except KeyError:
            made = self._known[rests_on] = make()
            return made

    def clear(self) -> None:
        """Something changes."""
        self._known.clear()
