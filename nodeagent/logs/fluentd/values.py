"""What Fluentd's values mean: embedded Ruby of the few kinds that configurations have, sizes, times, booleans
and regular expressions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from nodeagent.errors import ConfigError, shown
from nodeagent.logs.fluentd.syntax import Value

_SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NAME: Final = r"""['"]([A-Za-z_][A-Za-z0-9_]*)['"]"""
_LOOKUP: Final = re.compile(rf"""ENV\[\s*{_NAME}\s*\](?:\s*\|\|\s*(?:['"]([^'"]*)['"]|(use_default|use_nil)))?""")
_FETCH: Final = re.compile(rf"""ENV\.fetch\(\s*{_NAME}\s*(?:,\s*['"]([^'"]*)['"]\s*)?\)""")


class UnsetError(ConfigError):
    """The value asks to be as if it were not there (``use_default``, ``use_nil``)."""


def text_of(value: Value, environment: Mapping[str, str]) -> str:
    """Return *value* with its embedded Ruby resolved by the container's *environment*.

    Raises ConfigError, with the variable's name, for one that is not known and for any other Ruby;
    UnsetError where the parameter counts as not given.
    """

    def resolved(match: re.Match[str]) -> str:
        expression = match[1].strip()
        found = _LOOKUP.fullmatch(expression) or _FETCH.fullmatch(expression)
        if found is None:
            raise ConfigError(
                f"#{{{expression:.60}}}: of Ruby only ENV['NAME'] and ENV.fetch('NAME', 'VALUE') are known"
            )
        if found[1] in environment:
            return environment[found[1]]
        if found[2] is not None:
            return found[2]
        if found.re is _LOOKUP and found[3]:
            raise UnsetError(found[1])
        raise ConfigError(
            f"the environment variable {found[1]} is not known: give the pod's YAML, or --env {found[1]}=VALUE"
        )

    return re.sub(r"#\{([^}]*)\}", resolved, value.text) if value.ruby else value.text


def size(text: str) -> int:
    """Return *text* (``8m``, ``1GB``) in bytes. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,15})([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{shown(text)}: a size such as 64m is expected")
    return int(match[1]) * _SIZES[match[2]]


def boolean(text: str) -> bool:
    """Return *text* as a truth; a name alone is true. Raises ConfigError."""
    if text in ("true", "yes", ""):
        return True
    if text in ("false", "no"):
        return False
    raise ConfigError(f"{shown(text)}: true or false is expected")


def listed(text: str, delimiter: str = ",") -> list[str]:
    """Return the items of *text*: a JSON array, or with *delimiter* between them."""
    if text.startswith("["):
        try:
            return [str(each) for each in json.loads(text)]
        except ValueError:
            raise ConfigError(f"{shown(text)}: an array is expected") from None
    return [each for each in (item.strip() for item in text.split(delimiter)) if each]


def expression(text: str) -> str:
    """Return Ruby's regular expression *text*, with or without slashes, as RE2 writes it.

    Raises ConfigError where RE2 does not take it.
    """
    from nodeagent.logs.process.patterns import LinePattern  # compiles only where it is asked to

    options = ""
    if match := re.fullmatch(r"/(.*)/([imxn]*)", text, re.DOTALL):
        text = match[1]
        options = match[2].replace("n", "")
    text = _as_re2(text)
    if "x" in options:
        raise ConfigError(f"{shown(text)}: the option x (spaces and comments within) is not known here")
    flags = "".join(sorted({"i": "i", "m": "s"}[each] for each in options))  # Ruby's m: a dot fits a line's end too
    made = f"(?{flags}){text}" if flags else text
    LinePattern(made)
    return made


_IN_CLASS: Final = {"h": "0-9a-fA-F", "/": "/"}
_OUTSIDE: Final = {"h": "[0-9a-fA-F]", "H": "[^0-9a-fA-F]", "Z": r"\z", "/": "/"}
"""What stands behind a backslash in Ruby's expressions, and is written otherwise for RE2."""
_TOKEN: Final = re.compile(r"\\(.)|\[:\^?[a-z]+:\]|\(\?<(?=[A-Za-z_])|&&|.", re.DOTALL)


def _as_re2(text: str) -> str:
    """Return Ruby's expression *text*, token by token, as RE2 writes it. Raises ConfigError for sets within sets."""
    made: list[str] = []
    within = False
    for token in _TOKEN.finditer(text):
        found = token[0]
        if within and (found in ("[", "&&") or found == r"\H"):
            raise ConfigError(f"{shown(text)}: {found} within a set of characters is not known here")
        if token[1]:
            made.append((_IN_CLASS if within else _OUTSIDE).get(token[1], found))
            continue
        if found in ("[", "]"):
            within = found == "["
        made.append("(?P<" if found == "(?<" and not within else found)
    return "".join(made)


_TIMES: Final = {
    "F": "%Y-%m-%d",
    "T": "%H:%M:%S",
    "R": "%H:%M",
    "D": "%m/%d/%y",
    "e": "%d",
    "k": "%H",
    "l": "%I",
    "h": "%b",
}
"""What Ruby's strptime knows besides Python's."""


def time_format(text: str) -> str:
    """Return Fluentd's *text*, Ruby's strptime, as ``logs.parsers`` has it. Raises ConfigError."""
    from nodeagent.logs.process.times import time_form  # as in expression

    made = re.sub(r"%[369]?N", "%L", text)
    return time_form(re.sub(r"%([A-Za-z%])", lambda found: _TIMES.get(found[1], found[0]), made))
