"""Records as JSON objects of their own: what Elasticsearch, files and standard output get.

``{"@timestamp":"…","stream":"stdout","kubernetes":{…},…what the application wrote…}``: pieces that
are JSON already are spliced, nothing is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from nodeagent.logs.records import LogRecords

_QUOTE: Final = frozenset({0x22})
_EMPTY: Final = re.compile(rb"\{\s*\}")
_SECOND: Final = itemgetter(1)
_BODY: Final = itemgetter(slice(1, None))


def bodies(records: LogRecords) -> Sequence[bytes]:
    """Return the objects without their opening brace, each to be put behind ``{"member":…,``; an empty
    object becomes a member that says so, for nothing may follow the comma.
    """
    objects = records.objects
    if set(map(_SECOND, objects)) <= _QUOTE:
        return list(map(_BODY, objects))
    return [b'"log":""}' if _EMPTY.fullmatch(each) else each[1:] for each in objects]


def after_time(records: LogRecords) -> dict[bytes, bytes]:
    """Return what stands between a record's time and its body, by stream."""
    members = records.origin.members
    spliced = b"," + members if members else b""
    return {
        stream: b'"%b%b,' % (b',"stream":"%b"' % stream if stream else b"", spliced) for stream in set(records.streams)
    }


def documents(records: LogRecords) -> list[bytes]:
    """Return each record as one JSON object on one line."""
    between = after_time(records)
    return [
        b'{"@timestamp":"%b%b%b' % (time, between[stream], body)
        for time, stream, body in zip(records.times, records.streams, bodies(records), strict=True)
    ]


def chosen(batch: Sequence[LogRecords], only: Sequence[int]) -> list[LogRecords]:
    """Return the records of *batch* whose numbers, through all of it, are in *only* (ascending)."""
    result: list[LogRecords] = []
    wanted = iter(only)
    number = next(wanted, None)
    first = 0
    for records in batch:
        rows: list[int] = []
        while number is not None and number < first + len(records):
            rows.append(number - first)
            number = next(wanted, None)
        if rows:
            result.append(rows_of(records, rows))
        first += len(records)
    return result


def rows_of(records: LogRecords, rows: Sequence[int]) -> LogRecords:
    """Return those *rows* of *records*; what was read for all of them is not counted twice: it stays with
    the whole.
    """
    return LogRecords(
        records.origin,
        records.file,
        records.end,
        [records.offsets[row] for row in rows],
        [records.times[row] for row in rows],
        [records.streams[row] for row in rows],
        [records.texts[row] for row in rows],
        [records.objects[row] for row in rows],
        read_at=records.read_at,
    )


def between(records: LogRecords, begin: int, end: int) -> LogRecords:
    """Return the rows of *records* from *begin* on, before *end*, as :func:`rows_of` does."""
    rows = slice(begin, end)
    return LogRecords(
        records.origin,
        records.file,
        records.end,
        records.offsets[rows],
        records.times[rows],
        records.streams[rows],
        records.texts[rows],
        records.objects[rows],
        read_at=records.read_at,
    )
