"""What the journal has of a service, for who asks at the admin port: lines of ``log_text.py``, whose place in a file is
how many entries stand before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from nodeagent.control.log_scan import FoundFile
from nodeagent.logs.journal_streams import unit_of
from nodeagent.logs.process.journal import TIME
from nodeagent.logs.tail.journal_file import JournalContent
from nodeagent.logs.tail.unpacked import CompressedError
from nodeagent.services.as_pods import CONTAINER

_AT_ONCE: Final = 8 << 20
"""Of a journal's text, whoever's entries they are, that one answer is made of."""
EPOCH: Final = datetime.fromtimestamp(0, UTC)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, str])


def read_entries(
    found: FoundFile, unit: str, begin: int, since: float, most: int
) -> tuple[list[Mapping[str, object]], int, bool]:
    """Return the lines of *unit* in a journal file behind its first *begin* entries and not before *since*, at most
    about *most* bytes, how many entries stand before what follows, and whether that may be more.
    """
    content = JournalContent(found.opened.descriptor, lambda: True)
    lines: list[Mapping[str, object]] = []
    end = begin
    read = 0
    try:
        content.go_to(begin, int(since * 1e6))
        for end, line in content.following():
            read += len(line)
            if unit_of(line) == unit:
                lines.append(_line(line))
                most -= len(line)
            if read >= _AT_ONCE or most <= 0:
                return lines, end, True
    except (OSError, CompressedError):
        return lines, end, False  # `get logs` says what is wrong with it
    return lines, end, False


def _line(entry: bytes) -> Mapping[str, object]:
    members = _MEMBERS.decode(entry)
    return {
        "source": CONTAINER,
        "time": _time(members.get(TIME, "")),
        "stream": "",
        "text": members.get("MESSAGE", ""),
        "partial": False,
    }


def _time(microseconds: str) -> str:
    """Return when that is since 1970; nothing where it is no time, as in a file that is damaged."""
    try:
        return (EPOCH + timedelta(microseconds=int(microseconds))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return ""
