"""The Loki sink against a fake of its push API, after Loki's documentation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.delivery.segments import SegmentReader, SegmentWriter
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.multiline import Multiline
from nodeagent.logs.process.parsers import parser
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.processor import ProcessCounts, Processor, Recipe
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.records import Chunk, LogRecords
from nodeagent.logs.sinks import loki as loki_sink
from nodeagent.logs.sinks.documents import chosen
from nodeagent.logs.sinks.http_client import HttpAnswer
from nodeagent.logs.sinks.loki import LokiSink, outcome
from nodeagent.logs.sinks.settings import LokiSettings
from nodeagent.logs.sinks.sink import Indivisible, Taken, Untaken
from tests.fakes.loki import Loki
from tests.unit.logs.made_records import NOW, origin, records
from tests.waiting import DEADLINE


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), DEADLINE))


@pytest.mark.parametrize("compressed", [True, False])
def test_lines_are_in_the_stream_of_their_labels_with_time_text_and_metadata(compressed: bool) -> None:
    async def test() -> None:
        loki = Loki()
        server = await loki.start()
        settings = LokiSettings.model_validate(
            {"urls": [f"http://127.0.0.1:{loki.port}"], "tenant": "team-a", "gzip": compressed}
        )
        sink = LokiSink("loki", settings, 5)
        batch = [
            records(["a", {"b": 1}]),
            records(["c"], source=origin("web-2")),
            records(["d"], source=origin("x", "bank")),
        ]
        assert await sink.send(sink.encode(batch)) == Taken()
        second = 1795946400 * 10**9
        assert loki.lines == {
            ("bank", "app", "node1"): [(second, "d", {"pod": "x", "stream": "stdout"})],
            ("shop", "app", "node1"): [
                (second, "a", {"pod": "web-1", "stream": "stdout"}),
                (second + 10**9 + 1, '{"b": 1}', {"pod": "web-1", "stream": "stdout"}),
                (second, "c", {"pod": "web-2", "stream": "stdout"}),
            ],
        }
        assert loki.tenants == {"team-a"}
        await sink.close()
        server.close()

    run(test)


def test_without_metadata_a_line_has_none_and_empty_labels_are_left_out() -> None:
    settings = LokiSettings.model_validate(
        {"urls": ["http://l"], "labels": {"team": "{label:team}"}, "metadata": {}, "gzip": False}
    )
    body = LokiSink("loki", settings, 5).encode([records(["a"])]).body
    assert isinstance(body, bytes)
    assert json.loads(body) == {"streams": [{"stream": {"job": "nodeagent"}, "values": [["1795946400000000000", "a"]]}]}


def test_a_line_that_loki_finds_too_long_comes_in_parts_that_are_told_apart() -> None:
    text = "é" * (loki_sink.LINE_BYTES - 1)
    body = LokiSink("loki", LokiSettings.model_validate({"urls": ["http://l"], "gzip": False}), 5)
    found = body.encode([records([text])]).body
    assert isinstance(found, bytes)
    values = json.loads(found)["streams"][0]["values"]
    assert "".join(part for _, part, _ in values) == text
    assert max(len(part.encode()) for _, part, _ in values) <= loki_sink.LINE_BYTES
    assert len({time for time, _, _ in values}) == len(values) == 3


def test_lines_that_are_too_old_are_found_by_halving_and_the_others_are_kept() -> None:
    async def test() -> None:
        loki = Loki(ignored=lambda text: text == "old")
        server = await loki.start()
        sink = LokiSink("loki", LokiSettings.model_validate({"urls": [f"http://127.0.0.1:{loki.port}"]}), 5)
        assert isinstance(await sink.send(sink.encode([records(["a", "old"])])), Indivisible)
        assert await sink.send(sink.encode([records(["a"])])) == Taken()
        [refused] = [await sink.send(sink.encode([records(["old", "old"])]))]
        assert isinstance(refused, Taken) and list(refused.refused) == [0, 1]
        [(lines)] = loki.lines.values()
        assert [text for _, text, _ in lines] == ["a"], "a line that comes twice is there once"
        await sink.close()
        server.close()

    run(test)


OF_TENANT = b"Ingestion rate limit exceeded for user fake (limit: 9 bytes/sec) while attempting to ingest '1' lines"
OF_STREAM = b"entry with timestamp 1970-01-01 ignored, reason: 'Per stream rate limit exceeded (limit: 3MB/sec) while"
NO_STREAM = b'Maximum active stream limit exceeded when trying to create stream {a="b"}, reduce the number of streams'


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (204, b"", Taken()),
        (413, b"", Indivisible("413: the request is larger than the server takes", too_large=True)),
        (429, b"rate limit", Untaken("429: rate limit", 3.0)),
        (429, OF_TENANT, Untaken(f"429: {OF_TENANT.decode()}", 3.0)),
        (429, OF_STREAM, Untaken(f"429: {OF_STREAM.decode()}", 3.0, partly=True)),
        (429, NO_STREAM, Untaken(f"429: {NO_STREAM.decode()}", 3.0, partly=True)),
        (500, b"", Untaken("500: nothing is said", 3.0)),
        (404, b"x", Untaken("404: there is no /loki/api/v1/push behind this URL: x")),
        (401, b"no org id", Untaken("401: it does not let the agent in; see the sink's auth and tenant: no org id")),
    ],
)
def test_answers(status: int, body: bytes, expected: object) -> None:
    assert outcome(HttpAnswer(status, body, 3.0), 1) == expected


T = b"2026-11-29T10:00:00.1Z stdout F"


def times_of(batch: list[LogRecords]) -> list[int]:
    settings = LokiSettings.model_validate({"urls": ["http://l"], "gzip": False})
    body = LokiSink("loki", settings, 5).encode(batch).body
    assert isinstance(body, bytes)
    return [int(time) for stream in json.loads(body)["streams"] for time, *_ in stream["values"]]


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (Recipe("plain"), b"x"),
        (Recipe("plain"), b"retrying"),
        (Recipe("plain", multiline=Multiline(continues=LinePattern("^ "))), b"x\n y"),
        (Recipe("plain", parser("json", time=TimeKey(RecordMember("t")))), b'{"t":"2026-11-29T10:00:00Z"}'),
        (Recipe("plain", parser("json", time=TimeKey(RecordMember("t")))), b'{"t":"2026-11-29T10:00:00.125Z"}'),
        (Recipe("cri", parser("json", time=TimeKey(RecordMember("t")))), T + b' {"t":1795946400}'),
        (Recipe("cri"), b"of no format"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("now", [NOW, NOW + 0.123456])
def test_lines_that_are_alike_are_told_apart_and_are_the_same_when_they_come_again(
    recipe: Recipe, line: bytes, now: float
) -> None:
    """Loki keeps one of those with one time: of a volume's file all lines that are read together had one."""
    processor = Processor(origin(), recipe, ProcessCounts())
    data = (line + b"\n") * 500
    parts = [processor.feed(Chunk(b"f", 0, data), now)]
    parts.append(processor.feed(Chunk(b"f", len(data), data), now + 0.002))
    parts += [each for each in [processor.flush(now + 0.003, final=True)] if each]
    whole = times_of(parts)
    assert len(set(whole)) == 1000
    if b'"t"' not in line:
        assert whole == sorted(whole)
    assert max(abs(each - round(now * 1e9)) for each in whole) < 5e6 or b'"t"' in line
    numbers = range(100, 900)
    assert times_of(chosen(parts, numbers)) == whole[100:900], "of a request that is halved"


def test_the_time_that_a_parser_found_in_a_file_reads_as_it_is(tmp_path: Path) -> None:
    """Also where others of the file have the time of reading, in requests that are halved, and through the buffer."""
    recipe = Recipe("plain", parser("json", time=TimeKey(RecordMember("t"))))
    data = b'{"t":"2026-11-29T10:00:00.123456Z"}\nno time\nno time\n'
    made = Processor(origin(), recipe, ProcessCounts()).feed(Chunk(b"f", 1 << 20, data), NOW + 60.5)
    own, *read = times_of([made])
    assert own // 1000 == 1795946400_123456, "it reads the same"
    assert len(set(read)) == 2 and all(0 < each - 1795946460_500000000 < 17e6 for each in read)
    assert times_of(chosen([made], [0, 2])) == [own, read[1]]
    writer = SegmentWriter(tmp_path / "s")
    writer.append(writer.frames([made]))
    writer.close()
    reader = SegmentReader(tmp_path / "s")
    found = reader.next(writer.size)
    reader.close()
    assert found == made


@pytest.mark.parametrize("length", [64, 100, 999, 1000, 2000])
@pytest.mark.parametrize("fraction", ["123456", "1234567"])
def test_lines_that_are_alike_at_one_microsecond_are_two(length: int, fraction: str) -> None:
    """As a loop writes them that retries at once: Loki had one of them. A time of nanoseconds stays as it is."""
    recipe = Recipe("plain", parser("json", time=TimeKey(RecordMember("t"))))
    begin = b'{"t":"2026-11-29T10:00:00.%sZ","m":"' % fraction.encode()
    line = begin.ljust(length - 3, b"x") + b'"}\n'
    made = Processor(origin(), recipe, ProcessCounts()).feed(Chunk(b"f", 1 << 20, line * 500), NOW)
    times = times_of([made])
    assert {each // 1000 for each in times} == {1795946400_123456}
    assert len(set(times)) == (500 if fraction == "123456" else 1)


def test_the_times_of_a_runtime_stay() -> None:
    assert times_of([records(["a", "b", "c"])])[1:] == [1795946401000000001, 1795946402000000002]
