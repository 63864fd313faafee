"""Reads a section's parameters, and names those that nobody asked for: nothing of a configuration is passed
over in silence, but for what is of no meaning here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from nodeagent.errors import ConfigError
from nodeagent.logs.fluentd.parameters import NONE, Parameters
from nodeagent.logs.fluentd.syntax import ConfigLine, FluentSection, ImportNote
from nodeagent.logs.fluentd.values import UnsetError, boolean, size, text_of

Entry: TypeAlias = dict[str, Any]
"""A part of ``logs:`` as agent.yaml has it."""
Found = TypeVar("Found")
EVERYWHERE: Final = ("@type", "@id", "@log_level", "@label", "type", "id", "log_level")
"""Parameters of any plugin that say nothing of what is read and delivered, or that are read elsewhere."""


class SectionReader:
    """One section."""

    def __init__(self, section: FluentSection, environment: Mapping[str, str], notes: list[ImportNote]) -> None:
        self.section = section
        self._environment = environment
        self._notes = notes
        self._taken = set(EVERYWHERE)
        self._sections: set[str] = set()

    @property
    def type(self) -> str:
        """The plugin's name."""
        return self.text("@type") or self.text("type") or ""

    def text(self, name: str) -> str | None:
        """Return a parameter's value; None: it is not given, or not to be had, which is noted."""
        return self.get(name, str)

    def get(self, name: str, read: Callable[[str], Found]) -> Found | None:
        """Return what *read* makes of a parameter's value; None: not given, or wrong, which is noted."""
        value = self.section.values.get(name)
        if value is None:
            return None
        self._taken.add(name)
        try:
            return read(text_of(value, self._environment))
        except UnsetError:
            return None
        except ConfigError as error:
            self.note(f"{name}: {error}", value.place)
            return None

    def given(self, name: str) -> bool:
        """Say whether a parameter has a value, be it one that is not to be had; it counts as read."""
        value = self.section.values.get(name)
        self._taken.add(name)
        if value is None:
            return False
        try:
            return bool(text_of(value, self._environment))
        except UnsetError:
            return False
        except ConfigError:
            return True

    def size(self, name: str) -> int | None:
        """Return a size in bytes."""
        return self.get(name, size)

    def truth(self, name: str, default: bool = False) -> bool:
        """Return a truth, *default* where it is not given."""
        found = self.get(name, boolean)
        return default if found is None else found

    def sections(self, name: str) -> Iterator[SectionReader]:
        """Yield the sections of that name in it."""
        self._sections.add(name)
        for each in self.section.within(name):
            yield SectionReader(each, self._environment, self._notes)

    def one(self, name: str) -> SectionReader:
        """Return the section of that name in it, an empty one where there is none."""
        return next(
            self.sections(name), SectionReader(FluentSection(name, "", self.place), self._environment, self._notes)
        )

    @property
    def place(self) -> ConfigLine:
        return self.section.place

    def note(self, text: str, place: ConfigLine | None = None, *, lost: bool = False) -> None:
        """Say that something of the section is not taken, or different here; *lost*: a source or output."""
        self._notes.append(ImportNote(place or self.place, text, lost))

    def differs(self, name: str, why: str) -> None:
        """Say *why* the parameter has another meaning here, where it is given."""
        if (value := self.section.values.get(name)) is not None:
            self._taken.add(name)
            self.note(f"{name}: {why}", value.place)

    def needless(self, *names: str) -> None:
        """Pass over parameters that are of no meaning here."""
        self._taken.update(names)

    def by(self, parameters: Parameters) -> None:
        """Pass over, or name, what *parameters* have, as they say."""
        self.needless(*parameters.needless)
        for name, (values, why) in parameters.same.items():
            if (found := self.text(name)) is not None and found not in values:
                self.differs(name, why)
        for name, why in parameters.differs.items():
            self.differs(name, why)
        for name, why in parameters.sections.items():
            for each in self.sections(name):
                each.note(f"<{name}>: {why}")

    def finish(self, parameters: Parameters = NONE) -> None:
        """Go by *parameters*, and name what nobody asked for and they do not have."""
        self.by(parameters)
        for name, value in self.section.values.items():
            if name not in self._taken:
                self.note(f"{name}: is not taken: nothing here is like it", value.place)
        for each in self.section.sections:
            if each.name not in self._sections:
                self.note(f"<{each.name}>: is not taken: nothing here is like it", each.place)
