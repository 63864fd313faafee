"""Which lines go on with the record of the line before them in their stream; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nodeagent.logs.process.patterns import LinePattern


@dataclass(frozen=True, slots=True)
class Multiline:
    """A record begins where *start* is found, or where *continues* is not; exactly one of both is given."""

    start: LinePattern | None = None
    continues: LinePattern | None = None
    opens: LinePattern | None = None
    """Behind what it finds, and what is indented after that, one line more goes on, whatever it is: an exception's
    name is its author's.
    """
    max_lines: int = 1000
    """A longer record is cut."""
    flush_after: float = 2.0
    """Seconds that a record's next line is waited for."""

    def continuing(self, texts: Sequence[bytes]) -> set[int]:
        """Return the indices of those of *texts*, UTF-8 each, that go on with a record."""
        if self.start is not None:
            return set(range(len(texts))).difference(self.start.lines_with(texts))
        return set(self.continues.lines_with(texts)) if self.continues is not None else set()

    def opening(self, texts: Sequence[bytes]) -> set[int]:
        """Return the indices of those of *texts* behind which one line more goes on."""
        return set(self.opens.lines_with(texts)) if self.opens is not None else set()


_INDENTED: Final = r"^[ \t]+\S"
PRESETS: Final[Mapping[str, str]] = {
    "indented": _INDENTED,
    "java": (
        r"^[ \t]+\S|^(?:Caused by|Suppressed|Wrapped by): |^Exception in thread "
        r"|^(?:[a-zA-Z_$][\w$]*\.)+[A-Z][\w$]*(?:Exception|Error|Throwable)\b"
    ),
    "python": (
        r"^[ \t]+\S|^Traceback \(most recent call last\):"
        r"|^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Warning|Exit|Interrupt|Iteration|Group)(?::|$)"
        r"|^(?:During handling of the above|The above exception was|$)"
    ),
    "go": (
        r"^[ \t]+\S|^goroutine \d+ \[|^\[signal |^created by |^(?:[\w.\-]+/)*[\w.\-]+\.[\w.()*\[\]{}]+\(.*\)$"
        r"|^exit status \d+$|^$"
    ),
    "ruby": _INDENTED,
    "dotnet": r"^[ \t]+\S|^--- End of |^(?:[A-Za-z_]\w*\.)+[A-Z]\w*Exception\b|^ ---> ",
}
"""What goes on with a record, by the language whose stack traces it knows."""
_OPENS: Final = {"python": r"^Traceback \(most recent call last\):"}


def preset(name: str) -> Multiline:
    """Return the preset *name*, one of :data:`PRESETS`."""
    opens = LinePattern(_OPENS[name]) if name in _OPENS else None
    return Multiline(continues=LinePattern(PRESETS[name]), opens=opens)
