"""Names of header fields as Istio's mesh config lists them: whole, or a beginning or end with ``*``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

TOKEN: Final = r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,256}"
"""A field's name (RFC 9110 section 5.1) without ``*``, as a regular expression."""
_PATTERN: Final = re.compile(rf"{TOKEN}|\*{TOKEN}|{TOKEN}\*")


def name_pattern(text: str) -> str:
    """Return *text* if it can stand in such a list. Raises ValueError: ``*`` alone is none, as in Istio."""
    if not _PATTERN.fullmatch(text):
        raise ValueError("a header's name is expected, maybe with one * at its beginning or end, but not * alone")
    return text


class HeaderNames:
    """Which names a list of patterns means; without regard to case, as names of fields are compared."""

    __slots__ = ("_beginnings", "_ends", "_names")

    def __init__(self, patterns: Iterable[str]) -> None:
        lower = [pattern.lower() for pattern in patterns]
        self._names = frozenset(lower)
        self._beginnings = tuple([pattern[:-1] for pattern in lower if pattern.endswith("*")])
        self._ends = tuple([pattern[1:] for pattern in lower if pattern.startswith("*")])

    def __contains__(self, name: str) -> bool:
        """Say whether *name*, which is in lower case, is meant."""
        return name in self._names or name.startswith(self._beginnings) or name.endswith(self._ends)
