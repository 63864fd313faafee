"""Records that are dropped, and what of them is redacted; pure.

A rule for the text goes before parsing, and sees JSON as it is written, escapes and all; one for a
member goes behind it. What was redacted in a member is so in the record's text too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def drop_by_text(rules: Sequence[Rule], texts: Sequence[bytes]) -> set[int]:
    """Return the indices of those of *texts* that *rules* drop."""
    found: set[int] = set()
    for rule in rules:
        if isinstance(rule, DropRule) and rule.member is None:
            found.update(rule.pattern.lines_with(texts))
    return found


def redact_texts(rules: Sequence[Rule], texts: list[bytes]) -> list[bytes]:
    """Return *texts* as *rules* leave them."""
    for rule in rules:
        if isinstance(rule, RedactRule) and rule.member is None:
            texts = rule.pattern.replace(texts, rule.replacement.encode()) or texts
    return texts


def drop_by_member(rules: Sequence[Rule], objects: Sequence[bytes]) -> set[int]:
    """Return the indices of those of *objects* that *rules* drop."""
    found: set[int] = set()
    for rule in rules:
        if isinstance(rule, DropRule) and rule.member is not None:
            for at, value in rule.member.values(objects).items():
                if rule.pattern.found_in(value.encode()):
                    found.add(at)
    return found


def redact_members(rules: Sequence[Rule], objects: list[bytes]) -> dict[int, bytes]:
    """Return the objects that *rules* change, by their indices in *objects*."""
    changed: dict[int, bytes] = {}
    for rule in rules:
        if not isinstance(rule, RedactRule) or rule.member is None:
            continue
        now = [changed.get(at, found) for at, found in enumerate(objects)] if changed else objects
        changed |= rule.member.redacted(now, rule.replaced)
    return changed
