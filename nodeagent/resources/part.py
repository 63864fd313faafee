"""Reading a document of which every field must be known: for resources that no API server has validated."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final

from nodeagent.errors import ResourceError, shown
from nodeagent.resources.objects import Field

MAX_ITEMS: Final = 512
"""Rules of a policy, and items of a list in it."""
_DURATION: Final = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9})ms)?")


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

    def bounded(self, name: str) -> list[Any]:
        values = self._sequence(name)
        if len(values) > MAX_ITEMS:
            raise ResourceError(f"{self.at(name)}: {len(values)} items: at most {MAX_ITEMS} are allowed")
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
        values = self.bounded(name)
        for index, value in enumerate(values):
            expected = (
                "a text that is not empty is expected"
                if not isinstance(value, str) or not value
                else check(value)
                if check
                else ""
            )
            if expected:
                raise ResourceError(f"{self.at(name)}[{index}]: {shown(value)}: {expected}")
        return tuple(values)

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
        hours, minutes, seconds, milliseconds = (
            (float(group or 0) for group in match.groups()) if match else (0.0, 0.0, 0.0, 0.0)
        )
        value = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        if not shortest <= value <= longest:
            raise self.wrong(name, f"a duration from {shortest:g}s to {longest:g}s is expected, such as 5s or 500ms")
        return value
