"""Grafana Loki, by its push API (``POST /loki/api/v1/push``, JSON).

A record is a line of the stream that its labels make; labels are few, and what tells pods apart goes
into structured metadata. Loki keeps a line that comes twice once (same time, same text). It answers 400
when it ignored some of the lines (too old, too long) while it kept the others, and does not say which:
the request is halved until they are found. So is one to which it says time and again (429) that one stream is over a
limit; one of the whole tenant is waited for. Where it says that it ignored all, that is believed. A line that
is longer than it takes comes in parts, a nanosecond after each other: of two that are alike it keeps one.

So lines of a file that have the time at which they were read together, and those whose own time has no more than
microseconds, get nanoseconds by where they stand: apart, in order, and the same ones when they are sent again.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Final

import orjson
from isal import igzip

from nodeagent.logs.process.joining import first_line
from nodeagent.logs.records import LogOrigin, LogRecords
from nodeagent.logs.sinks.http_client import AnswerTooLong, HttpAnswer, HttpClient
from nodeagent.logs.sinks.secrets import Authorization, ClientTls, SinkError
from nodeagent.logs.sinks.settings import LOKI_PUSH, LokiSettings
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Payload, Taken, Untaken
from nodeagent.logs.sinks.templates import filled
from nodeagent.logs.sinks.times import nanoseconds, within

PATH: Final = LOKI_PUSH
GZIP_LEVEL: Final = 1
LINE_BYTES: Final = 256 << 10
"""Of a line, as Loki takes it unless it is told otherwise (``limits_config.max_line_size``)."""
_LATEST: Final = (1 << 63) - (1 << 20)
"""Nanoseconds since 1970 in 63 bits, of a line's first part, behind which others have room: in the year 2262."""
_MICROSECOND: Final = 1_000
_MILLISECOND: Final = 1_000_000
_ROOM: Final = 1 << 19
"""Nanoseconds that are added to a time of milliseconds at most: it reads as before."""
_ROOM_OF_MICROSECONDS: Final = 997
"""The same of microseconds. A prime: lines that are alike are as long, and stand as far from each other."""
_ROOM_OF_FILES: Final = 1 << 24
"""The same of a line that has the time at which it was read: its order holds for 32 MiB."""
_REST_OF_CHARACTER: Final = 3
_IGNORED: Final = re.compile(rb"total ignored: (\d{1,9}) out of (\d{1,9})")
_ONE_STREAM: Final = (b"Maximum active stream limit exceeded", b"Per stream rate limit exceeded")
"""With 429, of one stream (Loki's pkg/validation); "Ingestion rate limit exceeded" is the whole tenant's."""
_NO_LABELS: Final = {"job": "nodeagent"}


class LokiSink:
    """A Loki, or one of its gateways."""

    ordered: Final = True

    def __init__(self, name: str, settings: LokiSettings, timeout: float) -> None:
        self.name: Final = name
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        if settings.tenant:
            self._headers["X-Scope-OrgID"] = settings.tenant
        if settings.gzip:
            self._headers["Content-Encoding"] = "gzip"
        self._client = HttpClient(settings.urls, ClientTls(settings.tls), Authorization(settings.auth), timeout)

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as one push, a stream for each set of labels."""
        streams: dict[tuple[tuple[str, str], ...], list[object]] = {}
        for records in batch:
            labels = self._filled(self._settings.labels, records.origin) or _NO_LABELS
            streams.setdefault(tuple(labels.items()), []).extend(self._values(records))
        body = orjson.dumps(
            {"streams": [{"stream": dict(labels), "values": values} for labels, values in streams.items()]}
        )
        return Payload(batch, igzip.compress(body, compresslevel=GZIP_LEVEL) if self._settings.gzip else body)

    async def send(self, payload: Payload) -> Outcome:
        """POST *payload*."""
        assert isinstance(payload.body, bytes)
        try:
            answer = await self._client.post(PATH, self._headers, payload.body)
        except AnswerTooLong as error:
            return Untaken(str(error))
        except SinkError as error:
            return Untaken(str(error))
        return outcome(answer, sum(map(len, payload.batch)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _values(self, records: LogRecords) -> list[object]:
        metadata = self._filled(self._settings.metadata, records.origin)
        beside: dict[bytes, list[dict[str, str]]] = {stream: [] for stream in set(records.streams)}
        if self._settings.metadata:
            for stream, row in beside.items():
                row.append({**metadata, "stream": stream.decode()} if stream else metadata)
        values: list[object] = []
        for time, text, stream, offset in zip(
            records.times, records.texts, records.streams, records.offsets, strict=True
        ):
            read = not stream and time in records.read_at
            at = within(_apart(nanoseconds(time), first_line(offset), read=read), _LATEST)
            values += [[str(at + number), part, *beside[stream]] for number, part in enumerate(_parts(text))]
        return values

    @staticmethod
    def _filled(templates: dict[str, str], origin: LogOrigin) -> dict[str, str]:
        found = {name: filled(template, origin) for name, template in templates.items()}
        return {name: value for name, value in found.items() if value}


def _apart(at: int, first: int, *, read: bool) -> int:
    """Return the time *at* of a line that begins at *first* so that no other line has it that had the same one; *read*:
    it is when the line was read, which all have that were read with it. A line has two bytes at least: half of them
    tell it from the next.
    """
    if read:
        return at + first // 2 % _ROOM_OF_FILES
    if at % _MICROSECOND:
        return at
    if at % _MILLISECOND:
        return at + first % _ROOM_OF_MICROSECONDS
    return at + first // 2 % _ROOM


def _parts(text: bytes) -> Sequence[str]:
    """Return *text* in parts that Loki takes."""
    if len(text) <= LINE_BYTES:
        return (text.decode(),)
    decoder = codecs.getincrementaldecoder("utf-8")()
    step = LINE_BYTES - _REST_OF_CHARACTER
    return [decoder.decode(text[at : at + step]) for at in range(0, len(text), step)]


def outcome(answer: HttpAnswer, records: int) -> Outcome:
    """Return what *answer* to a push of so many *records* means for them."""
    said = answer.body[:500].decode("utf-8", "replace").strip() or "nothing is said"
    match answer.status:
        case 200 | 204:
            return Taken()
        case 400:
            ignored = _IGNORED.search(answer.body)
            if ignored and int(ignored[1]) == int(ignored[2]) == records:
                return Taken(refused=dict.fromkeys(range(records), f"400: {said}"))
            return Indivisible(f"400: {said}")
        case 413:
            return Indivisible("413: the request is larger than the server takes", too_large=True)
        case 401 | 403:
            return Untaken(f"{answer.status}: it does not let the agent in; see the sink's auth and tenant: {said}")
        case 404:
            return Untaken(f"404: there is no {PATH} behind this URL: {said}")
        case 429:
            return Untaken(f"429: {said}", answer.retry_after, partly=any(each in answer.body for each in _ONE_STREAM))
        case _:
            return Untaken(f"{answer.status}: {said}", answer.retry_after)
