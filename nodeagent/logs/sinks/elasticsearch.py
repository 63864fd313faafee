"""Elasticsearch and OpenSearch, by ``_bulk``.

Each record is created under an id made of its file and offset: what is sent twice is answered with
409, which is as good as taken. Of each record the answer says: 2xx and 409 are done, 429 and 5xx are
sent again, whatever else goes to the dead letters with the reason. A block of the whole index, as a
full disk sets it, is said with 403 by older servers; it is waited for as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import orjson
from isal import igzip

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.documents import after_time, bodies
from nodeagent.logs.sinks.http_client import AnswerTooLong, HttpAnswer, HttpClient
from nodeagent.logs.sinks.index_template import TemplateUpkeep
from nodeagent.logs.sinks.refusals import MAX_REASON, MAX_REFUSAL, in_words, is_its_own, reason_of
from nodeagent.logs.sinks.secrets import Authorization, ClientTls, SinkError
from nodeagent.logs.sinks.settings import ElasticsearchSettings
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Payload, Taken, Untaken
from nodeagent.logs.sinks.templates import DateWindow, IndexName

_ASKED: Final = ("errors", "items.*.status", *(f"items.*.error.{each}" for each in ("type", "reason", "caused_by")))
PATH: Final = f"/_bulk?filter_path={','.join(_ASKED)}"
ITEM_BYTES: Final = 4 << 10
"""Of an answer to many records, for each of them, that are read."""
GZIP_LEVEL: Final = 1
PIECES: Final = 6
"""A record: action, offset, what follows an id, time, what follows a time, body."""
_AFTER_ID: Final = b'"}}\n{"@timestamp":"'
_ALL_TAKEN: Final = b'{"errors":false'
_BLOCKED: Final = "cluster_block_exception"


class _ItemError(msgspec.Struct):
    type: str | None = None
    reason: str | None = None
    caused_by: dict[str, object] | None = None


class _Item(msgspec.Struct):
    status: int
    error: _ItemError | None = None


class _Action(msgspec.Struct, gc=False):
    create: _Item | None = None
    """The one that is asked for."""


class _BulkAnswer(msgspec.Struct):
    errors: bool
    items: list[_Action] = []


_DECODER: Final = msgspec.json.Decoder(_BulkAnswer)


class ElasticsearchSink:
    """A cluster of either kind."""

    ordered: Final = False

    def __init__(
        self, name: str, settings: ElasticsearchSettings, timeout: float, clock: Callable[[], float] = time.time
    ) -> None:
        """*clock* tells seconds since 1970: which dates an index may have."""
        self.name: Final = name
        self._index = IndexName(settings.index, DateWindow(settings.days_back, settings.days_ahead, clock))
        self._gzip = settings.gzip
        self._headers = {"Content-Type": "application/x-ndjson"}
        if settings.gzip:
            self._headers["Content-Encoding"] = "gzip"
        self._client = HttpClient(settings.urls, ClientTls(settings.tls), Authorization(settings.auth), timeout)
        self._template = TemplateUpkeep(settings.template, settings.index) if settings.template else None

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as the body of one ``_bulk``."""
        pieces: list[bytes] = []
        for records in batch:
            pieces += self._pieces(records)
        # Each record begins with the end of the line before it.
        pieces[0] = pieces[0][1:]
        pieces.append(b"\n")
        body = b"".join(pieces)
        return Payload(batch, igzip.compress(body, compresslevel=GZIP_LEVEL) if self._gzip else body)

    async def send(self, payload: Payload) -> Outcome:
        """POST *payload*, once the index template is there."""
        assert isinstance(payload.body, bytes)
        try:
            if self._template and (why := await self._template.lacking(self._client)):
                return Untaken(why)
            answer = await self._client.post(PATH, self._headers, payload.body)
        except AnswerTooLong as error:
            return Indivisible(str(error))
        except SinkError as error:
            return Untaken(str(error))
        return outcome(answer, sum(map(len, payload.batch)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _pieces(self, records: LogRecords) -> list[bytes]:
        """Return the two lines of each record in pieces. By columns: a third of the time that formatting takes."""
        rows = len(records)
        between = after_time(records)
        pieces = [_AFTER_ID] * (PIECES * rows)
        pieces[0::PIECES] = self._actions(records)
        pieces[1::PIECES] = hexadecimal(records.offsets)
        pieces[3::PIECES] = records.times
        pieces[4::PIECES] = map(between.__getitem__, records.streams)
        pieces[5::PIECES] = bodies(records)
        return pieces

    def _actions(self, records: LogRecords) -> list[bytes]:
        """Return what stands before each record's offset."""
        names = self._index.of(records)
        if len(names) == 1:
            return [_action(next(iter(names.values())), records.file)] * len(records)
        actions = {date: _action(name, records.file) for date, name in names.items()}
        return [actions[each[:10]] for each in records.times]


def hexadecimal(numbers: Sequence[int]) -> list[bytes]:
    """Return *numbers* in hexadecimal, by one format for all: a third faster than one each."""
    return (b"%x " * len(numbers) % tuple(numbers)).split()


def _action(index: str, file: bytes) -> bytes:
    action = orjson.dumps({"create": {"_index": index, "_id": f"{file.decode('ascii', 'replace')}-"}})
    return b"\n" + action[: -len(b'"}}')]


def outcome(answer: HttpAnswer, records: int) -> Outcome:
    """Return what *answer* to a ``_bulk`` of so many *records* means for each of them."""
    match answer.status:
        case 200:
            return _items(answer.body, records)
        case 413:
            return Indivisible("413: the request is larger than the server takes", too_large=True)
        case 400 if is_its_own(answer.body):
            return Indivisible(f"400: {reason_of(answer.body)}")
        case 400:
            return Untaken(f"400, and not in Elasticsearch's words; what is in between? {reason_of(answer.body)}")
        case 401 | 403:
            return Untaken(
                f"{answer.status}: it does not let the agent in; see the sink's auth: {reason_of(answer.body)}"
            )
        case _:
            return Untaken(f"{answer.status}: {reason_of(answer.body)}", answer.retry_after)


def _items(body: bytes, records: int) -> Outcome:
    if body.startswith(_ALL_TAKEN):
        return Taken()
    if len(body) > MAX_REFUSAL and body.count(b'"status"') < records:
        # Not decoded: of millions of empty items Python would make half a gigabyte.
        return Untaken(f"the answer names fewer than {records} records; does something between change it?")
    if len(body) > MAX_REFUSAL + ITEM_BYTES * records:
        return Indivisible(f"the answer has {len(body)} bytes for {records} records")
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Untaken("the answer is not that of _bulk; is something else at this URL?")
    if not found.errors:
        return Taken()
    items = [each.create for each in found.items]
    if len(items) != records:
        return Untaken(f"the answer names {len(items)} records of {records}; does something between change it?")
    again: list[int] = []
    refused: dict[int, str] = {}
    why = ""
    for number, item in enumerate(items):
        if item is None or _busy(item):
            again.append(number)
            why = why or _said(item)
        elif item.status >= 300 and item.status != 409:
            refused[number] = _said(item)
    return Taken(tuple(again), refused, why=why)


def _busy(item: _Item) -> bool:
    blocked = item.error is not None and item.error.type == _BLOCKED
    return item.status == 429 or item.status >= 500 or blocked


def _said(item: _Item | None) -> str:
    if item is None:
        return "no status"
    error = item.error or _ItemError()
    said = in_words(error.type or "without a type", error.reason or "", error.caused_by)
    return f"{item.status} {said}"[:MAX_REASON]
