"""Fluentd's routing: which patterns of ``<match>`` and ``<filter>`` a tag fits (docs.fluentd.org, "Config
File", "Wildcards and Expansions").
"""

from __future__ import annotations

import re
from functools import lru_cache

from nodeagent.errors import ConfigError, shown


@lru_cache(256)
def _pattern(text: str) -> re.Pattern[str]:
    """Return *text*, one pattern, as a regular expression: ``*`` is a part of a tag, ``**`` none or more
    parts, ``{a,b}`` one of several.
    """
    if text.startswith("/") and text.endswith("/") and len(text) > 1:
        raise ConfigError(f"{shown(text)}: a regular expression as a pattern of tags: allowed: *, ** and {{a,b}}")
    made = ""
    depth = 0
    at = 0
    while at < len(text):
        rest = text[at:]
        if rest.startswith("**."):
            made += r"(?:.+\.)?"
            at += 3
        elif rest == ".**" or rest.startswith((".**,", ".**}")):
            made += r"(?:\..+)?"
            at += 3
        elif rest.startswith("**"):
            made += ".*"
            at += 2
        elif rest[0] == "*":
            made += "[^.]+"
            at += 1
        else:
            depth += {"{": 1, "}": -1}.get(rest[0], 0)
            made += {"{": "(?:", "}": ")"}.get(rest[0], "|" if rest[0] == "," and depth else re.escape(rest[0]))
            at += 1
    if depth:
        raise ConfigError(f"{shown(text)}: a pattern of tags with a brace that is not closed")
    return re.compile(made)


def fits(patterns: str, tag: str) -> bool:
    """Say whether *tag* fits one of *patterns*, the argument of a section, several with spaces between; none: any
    tag. Raises ConfigError for a pattern that cannot be read here.
    """
    return not patterns or any(_pattern(each).fullmatch(tag) for each in patterns.split())
