"""Patterns of paths within a volume. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Final

from nodeagent.errors import ConfigError, shown

MAX_PARTS: Final = 16
"""Folders and the file's name of a pattern."""
MAX_PATTERN: Final = 1024
MAX_STARS: Final = 8
"""In one part: each may cost a look at the whole name."""
ANY_FOLDERS: Final = "**"


class PatternError(ConfigError):
    """A pattern that cannot be used; it says why, and what is allowed."""


@dataclass(frozen=True, slots=True)
class PathPattern:
    """Names below a volume: one part a folder, the last one for files."""

    text: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]


@lru_cache(1024)
def path_pattern(text: str) -> PathPattern:
    """Return the pattern *text*, such as ``app/*.log`` or ``**/*.log``.

    Raises PatternError for what leads out of the volume, and for what no file's path can be.
    """
    if len(text) > MAX_PATTERN:
        raise PatternError(f"a path of at most {MAX_PATTERN} characters is expected, not {len(text)}")
    if not text or not text.isprintable():
        raise PatternError(f"a path such as app/*.log is expected, not {shown(text)}")
    if text.startswith("/"):
        raise PatternError(f"a path below the volume is expected, without a slash before it, not {shown(text)}")
    parts = tuple(part for part in text.split("/") if part != ".")
    if ".." in parts:
        raise PatternError(f"a path that stays within the volume is expected, without .., not {shown(text)}")
    if not parts or "" in parts or parts[-1] == ANY_FOLDERS:
        raise PatternError(f"a path that ends with files' names, such as **/*.log, is expected, not {shown(text)}")
    if len(parts) > MAX_PARTS or parts.count(ANY_FOLDERS) > 1:
        raise PatternError(f"at most {MAX_PARTS} parts and one ** are expected, not {shown(text)}")
    if any(part.count("*") > MAX_STARS for part in parts):
        raise PatternError(f"at most {MAX_STARS} * in a name are expected, not {shown(text)}")
    return PathPattern(text, parts)


@lru_cache(1024)
def matcher(part: str) -> re.Pattern[str]:
    """Return what says whether a name fits *part*, one part of a path pattern."""
    return re.compile(translate(part))


def fits(part: str, name: str) -> bool:
    """Say whether *name* fits the pattern *part*; hidden names only where it begins with a dot too."""
    if name.startswith(".") and not part.startswith("."):
        return False
    return matcher(part).match(name) is not None


def path_fits(pattern: PathPattern, path: str) -> bool:
    """Say whether *path*, below the volume, fits *pattern*."""
    parts = path.split("/")
    wanted = pattern.parts
    if ANY_FOLDERS not in wanted:
        return len(wanted) == len(parts) and all(map(fits, wanted, parts))
    first = wanted.index(ANY_FOLDERS)
    after = wanted[first + 1 :]
    if len(parts) < first + len(after):
        return False
    return all(map(fits, wanted[:first], parts[:first])) and all(map(fits, after, parts[len(parts) - len(after) :]))
