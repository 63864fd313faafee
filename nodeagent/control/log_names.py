"""Whose rotated file a name is: ``app.log.1`` and ``app-2026-01-01.log.gz`` are what ``app.log`` was. Pure.

What is one log is read in order and compared with itself, so that a copy of what was read is known for
one. Patterns often fit the rotated names too (``*.log*``); a name goes by what it was rotated from then
as well. In doubt it is a log of its own. Names are a pod's to choose, and so many that a millisecond for
each would stop control: everything here is linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from nodeagent.logs.patterns import fits

_COMPRESSED: Final = r"\.(?:gz|zip|zst|bz2|xz)"
_SUFFIX: Final = re.compile(rf"[-._~]?([-._~]*\d[-._~\dT:]*|old|bak)?({_COMPRESSED})?")
"""What rotation puts behind a file's name."""
_INFIX: Final = re.compile(rf"([-._]\d[-._\dT:]*)(\.[A-Za-z]{{1,8}})({_COMPRESSED})?")
"""What rotation puts before a file's extension (logback, logrotate's ``extension``), and what follows."""
_DATE: Final = re.compile(r"\d{4}[-._]?\d\d[-._]?\d\d|\d\d[-._]\d\d[-._]\d{4}")
_LOG_LIKE: Final = re.compile(r".+\.(?:log|txt|out|err|json|jsonl|ndjson)", re.DOTALL)
"""Names of files that are written: with a number behind it, one was rotated though it may not be there now."""
_CHARACTERS: Final = 48
"""Of a name's end that rotation may have put there."""
_PLACES: Final = 10
"""In it, at which what rotation put there may begin."""


def log_of(name: str, part: str, there: Callable[[str], bool]) -> str:
    """Return the name of the log that the file *name* is of, itself or what it was rotated from; empty: none that
    fits *part*, the last one of a pattern. *there*: whether a name is that of a log in the folder, that fits it.
    """
    own = fits(part, name)
    for base in _bases_of_infix(name):
        if there(base):
            return base
    for base in _bases(name):
        if there(base) or (fits(part, base) and (not own or _LOG_LIKE.fullmatch(base))):
            return base
    return name if own else ""


def _bases(name: str) -> Iterator[str]:
    """Yield what *name* may have been before something was put behind it, the shortest first."""
    for end in _places(name):
        if _SUFFIX.fullmatch(name[end:]):
            yield name[:end]


def _bases_of_infix(name: str) -> Iterator[str]:
    """Yield what *name* may have been before something was put before its extension: a date, or just a number where it
    is compressed, for nobody writes to that any more.
    """
    for end in _places(name):
        match = _INFIX.fullmatch(name[end:])
        if match and (match[3] or _DATE.search(match[1])):
            yield name[:end] + match[2]


def _places(name: str) -> list[int]:
    places = [end for end in range(max(1, len(name) - _CHARACTERS), len(name)) if name[end] in "-._~"]
    return places[-_PLACES:]
