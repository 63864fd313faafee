"""Reading a document piece by piece, so that what is wrong is told with its path, its value and what
is expected: :class:`Field` for what an API server has validated, :class:`Part` for what nobody has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final

from nodeagent.errors import ResourceError, in_quotes, shown
from nodeagent.vocabulary import Address, canonical_address

MAX_ITEMS: Final = 512
"""Rules of a policy, and mappings in a list of it."""
MAX_VALUES: Final = 16384
"""Texts in a list of a policy, such as blocks of addresses."""
TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
"""A method or a header's name (RFC 9110, section 5.6.2)."""
_DURATION: Final = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9})ms)?")


class Field:
    """A part of a document that knows its path; every reading checks the type and names the path when it is wrong."""

    __slots__ = ("_path", "_values")

    def __init__(self, path: str, value: object) -> None:
        if not isinstance(value, dict):
            # Of a whole document nobody knows what it is: a key of somebody's may stand in it.
            found = f"{path}: {shown(value)}" if path else f"document: of type {type(value).__name__}"
            raise ResourceError(f"{found}: a mapping is expected")
        self._path = path
        self._values = value

    def at(self, name: str) -> str:
        name = name if name.isprintable() else shown(name)
        return f"{self._path}.{name}" if self._path else name

    def wrong(self, name: str, expected: str) -> ResourceError:
        value = self._values.get(name)
        given = f" {shown(value)}:" if value is not None else ""
        return ResourceError(f"{self.at(name)}:{given} {expected}")

    def part(self, name: str) -> Field:
        value = self._values.get(name)
        return Field(self.at(name), {} if value is None else value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (default is None and not value):
            raise self.wrong(name, f"a text is expected{in_quotes(value)}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], expected: str, default: str | None = None) -> str:
        value = self.text(name, default)
        if not pattern.fullmatch(value):
            raise self.wrong(name, f"{expected} is expected")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false is expected")
        return bool(value)

    def port(self, name: str, *, named: bool = False, default: int | None = None) -> int | str:
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if named and isinstance(value, str) and value and not value.isdigit():
            return value
        if isinstance(value, str) and named and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
            raise self.wrong(name, "a port from 1 to 65535 is expected" + (", or its name" if named else ""))
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self.port(name, default=default)
        assert isinstance(value, int)
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(
            isinstance(key, str) and isinstance(text, str) for key, text in value.items()
        ):
            others = value.values() if isinstance(value, dict) else ()
            raise self.wrong(name, f"a mapping of texts is expected{next(filter(None, map(in_quotes, others)), '')}")
        return value

    def parts(self, name: str) -> list[Field]:
        return [Field(f"{self.at(name)}[{index}]", value) for index, value in enumerate(self._sequence(name))]

    def strings(self, name: str) -> list[str]:
        values = self._sequence(name)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) < len(values):
            raise self.wrong(name, f"a list of texts is expected{next(filter(None, map(in_quotes, values)), '')}")
        return texts

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def address(self, name: str) -> Address:
        return self.canonical(name, self.text(name))

    def canonical(self, name: str, text: str) -> Address:
        try:
            return canonical_address(text)
        except ValueError:
            raise self.wrong(name, "an IPv4 or IPv6 address is expected") from None

    def addresses(self, name: str) -> tuple[Address, ...]:
        return tuple(self.canonical(name, text) for text in self.strings(name))

    def _sequence(self, name: str) -> list[object]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list is expected")
        return value


class Part(Field):
    """A :class:`Field` whose every key is known."""

    __slots__ = ()

    def sub(self, name: str) -> Part:
        """Return the mapping *name*, empty when it is not there."""
        value = self._values.get(name)
        return Part(self.at(name), {} if value is None else value)

    def items(self, name: str) -> list[Part]:
        """Return the mappings in the list *name*."""
        return [Part(f"{self.at(name)}[{index}]", value) for index, value in enumerate(self.bounded(name))]

    def bounded(self, name: str, most: int = MAX_ITEMS) -> list[object]:
        values = self._sequence(name)
        if len(values) > most:
            raise ResourceError(f"{self.at(name)}: {len(values)} items: at most {most} are allowed")
        return values

    def only(self, *names: str) -> None:
        """Refuse keys that are none of *names*."""
        for key in self._values:
            if key not in names:
                raise ResourceError(f"{self.at(str(key)):.200}: unknown field: allowed: {', '.join(names)}")

    def given(self, name: str) -> bool:
        """Say whether *name* stands there with a value, were it an empty one."""
        return self._values.get(name) is not None

    def choice(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(name, f"allowed: {', '.join(allowed)}")
        return value

    def words(self, name: str, check: Callable[[str], str] | None = None) -> tuple[str, ...]:
        """Return a list of texts that are not empty; *check* says what is wrong with one."""
        words = []
        for index, value in enumerate(self.bounded(name, MAX_VALUES)):
            expected = ""
            if not isinstance(value, str) or not value:
                expected = f"a text that is not empty is expected{in_quotes(value)}"
            elif check is not None:
                expected = check(value)
            if expected:
                raise ResourceError(f"{self.at(name)}[{index}]: {shown(value)}: {expected}")
            words.append(str(value))
        return tuple(words)

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Return a whole number from *least* to *most*."""
        value = self._values.get(name, default)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most} is expected")
        return value

    @property
    def keys(self) -> list[str]:
        return list(self._values)

    def duration(self, name: str, default: float, *, shortest: float, longest: float = 3600.0) -> float:
        """Return the seconds of a duration as Go and Kubernetes write it (``1m30s``, ``500ms``)."""
        if not self.given(name):
            return default
        match = _DURATION.fullmatch(self.text(name))
        value = 0.0
        if match is not None:
            hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
            value = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        if not shortest <= value <= longest:
            raise self.wrong(name, f"a duration from {shortest:g}s to {longest:g}s is expected, such as 5s or 500ms")
        return value


def port_problem(text: str) -> str:
    """Return what is wrong with *text* as a port's number, empty: nothing."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return ""
    return "a port from 1 to 65535, as text, is expected"
