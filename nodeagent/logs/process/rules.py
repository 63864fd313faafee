"""Records that are dropped, and what of them is redacted, rule by rule in their order; pure.

A rule for the text sees JSON as it is written, escapes and all; what was redacted in a member is so in the
record's text too. Of a text that is no object a member is redacted where its quoted name stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.patterns import LinePattern


@dataclass(frozen=True, slots=True)
class DropRule:
    """Records in which *pattern* is found are dropped."""

    pattern: LinePattern
    member: RecordMember | None = None
    """Where it is looked for; None: in the text."""


@dataclass(frozen=True, slots=True)
class RedactRule:
    """What *pattern* finds is replaced."""

    pattern: LinePattern
    replacement: str
    member: RecordMember | None = None
    """Where it is looked for; None: in the text."""

    def replaced(self, value: str) -> str:
        """Return a member's *value* without what is found."""
        return self.pattern.replaced_in(value.encode(), self.replacement.encode()).decode("utf-8", "replace")


Rule: TypeAlias = DropRule | RedactRule


def in_turns(rules: Iterable[Rule]) -> list[tuple[Rule, ...]]:
    """Return *rules* in those that follow each other, the first for texts, the next for members, and so on."""
    turns = [(for_member, tuple(turn)) for for_member, turn in groupby(rules, lambda each: each.member is not None)]
    first: list[tuple[Rule, ...]] = [()] if turns and turns[0][0] else []
    return first + [turn for _, turn in turns]


def rule_texts(rules: Sequence[Rule], texts: list[bytes]) -> tuple[list[bytes], set[int]]:
    """Return *texts* as *rules* for texts leave them, and the indices of those that are dropped."""
    dropped: set[int] = set()
    for rule in rules:
        if isinstance(rule, RedactRule):
            texts = rule.pattern.replace(texts, rule.replacement.encode()) or texts
        else:
            dropped.update(rule.pattern.lines_with(texts))
    return texts, dropped


@dataclass(slots=True)
class ParsedTexts:
    """Texts, and the objects that were made of them."""

    texts: list[bytes]
    objects: list[bytes]
    unread: set[int]
    """Indices of those that are text within an object."""
    of_text: Callable[[Sequence[bytes]], list[bytes]]
    """Makes such objects."""
    member: str
    """Where in them the text is."""
    written: set[int] = field(default_factory=set)
    """Of those whose text is the object, for a member was redacted."""
    failed: set[int] = field(default_factory=set)
    """Of those that are no object though something was redacted that would be a member of it."""

    def rule_members(self, rules: Sequence[Rule]) -> set[int]:
        """Redact what *rules* for members find; return the indices of those that they drop."""
        dropped: set[int] = set()
        for rule in rules:
            assert rule.member is not None, "there are other rules for texts"
            if isinstance(rule, RedactRule):
                self._redact(rule, rule.member)
            else:
                found = rule.member.values(self.objects).items()
                dropped.update(at for at, value in found if rule.pattern.found_in(value.encode()))
        return dropped

    def _redact(self, rule: RedactRule, member: RecordMember) -> None:
        changed = member.redacted(self.objects, rule.replaced)
        for at in changed.keys() - self.unread:
            self.objects[at] = self.texts[at] = changed[at]
            self.written.add(at)
        whole = member.path == self.member
        for at in self.unread:
            before = self.texts[at]
            if whole:
                made = rule.pattern.replaced_in(before, rule.replacement.encode())
            else:
                made = member.quoted.redacted(before, rule.replaced, rule.replacement)
            if made != before:
                self.texts[at] = made
                [self.objects[at]] = self.of_text([made])
                self.failed |= set() if whole else {at}
