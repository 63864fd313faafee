"""The _bulk sink against a fake that follows the documentation; tests/netns has the real server."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks import elasticsearch, http_client
from nodeagent.logs.sinks.elasticsearch import ElasticsearchSink, hexadecimal, outcome
from nodeagent.logs.sinks.http_client import HttpAnswer
from nodeagent.logs.sinks.secrets import SinkError
from nodeagent.logs.sinks.settings import ElasticsearchSettings
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Taken, Untaken
from tests.fakes.bulk import Bulk, response
from tests.unit.logs.made_records import NOW, origin, records
from tests.waiting import DEADLINE


def settings(port: int, **more: Any) -> ElasticsearchSettings:
    return ElasticsearchSettings.model_validate({"urls": [f"http://127.0.0.1:{port}"], **more})


@asynccontextmanager
async def served(**more: Any) -> AsyncIterator[tuple[Bulk, ElasticsearchSink]]:
    bulk = Bulk()
    server = await bulk.start()
    sink = ElasticsearchSink("search", settings(bulk.port, **more), timeout=60, clock=lambda: NOW)
    try:
        yield bulk, sink
    finally:
        await sink.close()
        server.close()


async def sent(sink: ElasticsearchSink, *batch: LogRecords) -> Outcome:
    return await sink.send(sink.encode(batch))


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), DEADLINE))


@pytest.mark.parametrize("compressed", [True, False])
def test_documents_have_id_index_time_stream_metadata_and_what_was_written(compressed: bool) -> None:
    async def test() -> None:
        async with served(gzip=compressed) as (bulk, sink):
            assert await sent(sink, records([{"level": "info"}, "text"])) == Taken()
            assert bulk.documents[("logs-shop-2026.11.29", "f00d-0")] == {
                "@timestamp": "2026-11-29T10:00:00.000000000Z",
                "stream": "stdout",
                "kubernetes": {"namespace_name": "shop", "pod_name": "web-1", "container_name": "app"},
                "level": "info",
            }
            assert bulk.documents[("logs-shop-2026.11.29", "f00d-64")]["log"] == "text"
            [(path, headers, _)] = bulk.requests
            assert headers["content-type"] == "application/x-ndjson"
            assert ("content-encoding" in headers) == compressed
            asked = (
                "errors",
                "items.*.status",
                "items.*.error.type",
                "items.*.error.reason",
                "items.*.error.caused_by",
            )
            assert path.endswith(f"filter_path={','.join(asked)}")

    run(test)


TEMPLATE = {"name": "shop-logs", "body": {"template": {"mappings": {"dynamic": False}}}}


def test_an_index_template_is_put_before_the_first_record_and_once() -> None:
    async def test() -> None:
        async with served(template=TEMPLATE, index="logs-{namespace}-{date}") as (bulk, sink):
            for _ in range(2):
                assert await sent(sink, records(["a"])) == Taken()
            assert bulk.templates == {"shop-logs": {"index_patterns": ["logs-*-*"], **TEMPLATE["body"]}}  # type: ignore[dict-item]
            paths = [path.partition("?")[0] for path, _, _ in bulk.requests]
            assert paths == ["/_index_template/shop-logs"] * 2 + ["/_bulk"] * 2

    run(test)


def test_a_template_that_is_there_is_left_as_it_is() -> None:
    async def test() -> None:
        async with served(template=TEMPLATE) as (bulk, sink):
            bulk.templates["shop-logs"] = {"somebody": "else's"}
            assert await sent(sink, records(["a"])) == Taken()
            assert bulk.templates == {"shop-logs": {"somebody": "else's"}}

    run(test)


def test_records_wait_for_a_template_that_is_refused_and_the_reason_is_named() -> None:
    async def test() -> None:
        async with served(template={**TEMPLATE, "body": {"index_patterns": []}}) as (bulk, sink):
            bulk.whole = response(400, b'{"error":{"type":"illegal_argument","reason":"patterns are empty"}}')
            why = "its index template shop-logs: 400: illegal_argument: patterns are empty"
            assert await sent(sink, records(["a"])) == Untaken(why)
            bulk.whole = None
            assert await sent(sink, records(["a"])) == Taken()
            assert len(bulk.documents) == 1

    run(test)


def test_what_is_sent_twice_is_there_once() -> None:
    async def test() -> None:
        async with served() as (bulk, sink):
            for _ in range(2):
                assert await sent(sink, records(["a", "b"])) == Taken()
            assert len(bulk.documents) == 2
            assert bulk.connections == 1, "the connection is kept"

    run(test)


def test_each_record_is_answered_for() -> None:
    async def test() -> None:
        statuses = {"busy": 429, "internal": 503, "mapping": 400, "block": 403}
        kinds = {"block": "cluster_block_exception"}

        def item(_id: str, document: Any) -> dict[str, Any] | None:
            text = document["log"]
            error = {"type": kinds.get(text, text), "reason": "why", "caused_by": {"type": "t", "reason": "deeper"}}
            return {"status": statuses[text], "error": error} if text in statuses else None

        async with served() as (bulk, sink):
            bulk.item = item
            outcome = await sent(sink, records(["a", "busy", "internal"]), records(["mapping", "b", "block"], 1000))
            assert outcome == Taken((1, 2, 5), {3: "400 mapping: why: deeper"}, why="429 busy: why: deeper")

    run(test)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (response(413, b""), Indivisible("413: the request is larger than the server takes", too_large=True)),
        (response(429, b"busy", "retry-after: 7"), Untaken("429: busy", 7.0)),
        (response(503, b'{"error":{"type":"t","reason":"r"}}'), Untaken("503: t: r")),
        (response(400, b'{"error":"no handler"}'), Indivisible("400: no handler")),
        (
            response(401, b""),
            Untaken("401: it does not let the agent in; see the sink's auth: nothing is said"),
        ),
        (response(200, b"<html>"), Untaken("the answer is not that of _bulk; is something else at this URL?")),
        (
            response(200, b'{"errors":true,"items":[]}'),
            Untaken("the answer names 0 records of 1; does something between change it?"),
        ),
    ],
)
def test_answers_for_the_whole_request(answer: bytes, outcome: Outcome) -> None:
    async def test() -> None:
        async with served() as (bulk, sink):
            bulk.whole = answer
            assert await sent(sink, records(["a"])) == outcome

    run(test)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-x\r\n", "not HTTP/1.1"),
        (response(200, b"x" * 100)[:-50], "within its answer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "head"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nx: y", "within its answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "within its answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", "within its answer"),
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 14\r\n\r\nno certificate", "what is in between"),
        (b"", "without an answer"),
    ],
)
def test_what_is_no_answer_is_tried_again(answer: bytes, why: str) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        sink = ElasticsearchSink("search", settings(server.sockets[0].getsockname()[1]), 5)
        outcome = await sent(sink, records(["a"]))
        assert isinstance(outcome, Untaken) and why in outcome.why
        await sink.close()
        server.close()

    run(test)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nconnection: close", b"HTTP/1.0 200 OK\r\nx: y"])
def test_an_answer_may_end_with_its_connection(head: bytes) -> None:
    """RFC 9112, section 6.3: what has neither a length nor chunks is whole when the server closes."""

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + b'\r\n\r\n{"errors":false,"items":[]}')
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        sink = ElasticsearchSink("search", settings(server.sockets[0].getsockname()[1]), 5)
        assert await sent(sink, records(["a"])) == Taken()
        assert await sent(sink, records(["b"])) == Taken(), "over another connection"
        await sink.close()
        server.close()

    run(test)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (b"retry-after: 7", 7),
        (b"retry-after: Sun, 29 Nov 2026 10:01:00 GMT\r\ndate: Sun, 29 Nov 2026 10:00:00 GMT", 60),
        (b"retry-after: Sun, 29 Nov 2026 09:00:00 GMT\r\ndate: Sun, 29 Nov 2026 10:00:00 GMT", 0),
        (b"retry-after: Sun, 29 Nov 2026 10:01:00 GMT", None),
        (b"retry-after: soon\r\ndate: Sun, 29 Nov 2026 10:00:00 GMT", None),
        (b"retry-after: Sun, 29 Nov 99999 10:01:00 GMT\r\ndate: \xff", None),
    ],
)
def test_a_server_asks_for_time_in_either_way(lines: bytes, seconds: float | None) -> None:
    read = http_client._Reading()
    read.feed(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n" + lines + b"\r\n\r\n")
    assert read.answer().retry_after == seconds


def test_an_endless_answer_makes_requests_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(http_client, "MAX_ANSWER", 1000)
        async with served() as (bulk, sink):
            bulk.item = lambda _id, _document: {"status": 400, "error": {"type": "t", "reason": "long" * 100}}
            outcome = await sent(sink, records(["a", "b", "c"]))
            assert outcome == Indivisible("its answer has more than 1000 bytes")

    run(test)


def test_an_answer_that_does_not_come_ends_in_time_and_the_next_is_its_own() -> None:
    async def test() -> None:
        bulk = Bulk(gate=asyncio.Event())
        server = await bulk.start()
        sink = ElasticsearchSink("search", settings(bulk.port), timeout=0.05)
        outcome = await sent(sink, records(["a"]))
        assert isinstance(outcome, Untaken) and "no answer in time" in outcome.why
        assert bulk.gate
        bulk.gate.set()
        sink._client._timeout = 30
        assert await sent(sink, records(["b"], 500)) == Taken()
        assert bulk.connections == 2
        await sink.close()
        server.close()

    run(test)


def test_a_connection_that_was_closed_while_idle_is_made_again_at_once() -> None:
    async def test() -> None:
        async with served() as (bulk, sink):
            bulk.whole = response(503, b"", "connection: keep-alive")
            await sent(sink, records(["a"]))
            connection = sink._client._idle[sink._client._servers[0]][0]
            connection._writer.transport.abort()
            bulk.whole = None
            assert await sent(sink, records(["a"])) == Taken()

    run(test)


def test_the_next_server_is_asked_where_one_does_not_answer() -> None:
    async def test() -> None:
        async with served() as (bulk, _):
            dead = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
            urls = [f"http://127.0.0.1:{port}" for port in (dead.sockets[0].getsockname()[1], bulk.port)]
            sink = ElasticsearchSink("search", ElasticsearchSettings.model_validate({"urls": urls}), 5)
            assert isinstance(await sent(sink, records(["a"])), Untaken)
            assert await sent(sink, records(["a"])) == Taken()
            assert await sent(sink, records(["b"], 300)) == Taken()
            await sink.close()
            dead.close()

    run(test)


def test_credentials_are_read_again_when_they_change(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "password"
        path.write_text("first\n")
        auth = {"basic": {"user": "me", "passwordFile": str(path)}}
        async with served(auth=auth) as (bulk, sink):
            await sent(sink, records(["a"]))
            (tmp_path / "new").write_text("second\n")
            (tmp_path / "new").rename(path)
            await sent(sink, records(["a"]))
            path.unlink()
            outcome = await sent(sink, records(["a"]))
            said = [headers["authorization"] for _, headers, _ in bulk.requests]
            assert said == ["Basic bWU6Zmlyc3Q=", "Basic bWU6c2Vjb25k"]
            assert isinstance(outcome, Untaken) and str(path) in outcome.why and "second" not in outcome.why

    run(test)


@pytest.mark.parametrize(("key", "scheme"), [("apiKeyFile", "ApiKey"), ("bearerFile", "Bearer")])
def test_other_ways_in(tmp_path: Path, key: str, scheme: str) -> None:
    async def test() -> None:
        path = tmp_path / "token"
        path.write_text("abc")
        async with served(auth={key: str(path)}) as (bulk, sink):
            await sent(sink, records(["a"]))
            assert bulk.requests[0][1]["authorization"] == f"{scheme} abc"
            path.write_text("a\r\nX-Other: b")
            assert isinstance(await sent(sink, records(["a"])), Untaken)
            assert len(bulk.requests) == 1

    run(test)


@pytest.mark.parametrize(
    ("index", "names"),
    [
        ("logs", {"logs"}),
        ("logs-{namespace}-{date}", {"logs-shop-2026.11.29", "logs-shop-2026.11.30"}),
        ("{label:team}-{year}.{month}", {"a-b-c-2026.11"}),
        ("{label:none}{container}", {"app"}),
    ],
)
def test_indices_by_template(index: str, names: set[str]) -> None:
    async def test() -> None:
        async with served(index=index) as (bulk, sink):
            source = origin(labels={"team": "_A/b C"})
            found = records(["a", "b"], source=source)
            found.times[1] = b"2026-11-30T00:00:00Z"
            assert await sent(sink, found) == Taken()
            assert {name for name, _ in bulk.documents} == names
            assert len(bulk.documents) == 2

    run(test)


@pytest.mark.parametrize(
    ("time", "date"),
    [
        (b"2026-11-22T00:00:00Z", "2026.11.22"),
        (b"2026-11-21T23:59:59Z", "2026.11.29"),
        (b"2026-11-30T23:59:59Z", "2026.11.30"),
        (b"2026-12-01T00:00:00+14:00", "2026.11.29"),
        (b"0001-01-01T00:00:00Z", "2026.11.29"),
        (b"9999-12-31T23:59:59Z", "2026.11.29"),
    ],
)
def test_a_date_far_from_now_makes_no_index(time: bytes, date: str) -> None:
    """It is a pod's, or a clock's, invention: the record keeps it, and goes to the index of today."""

    async def test() -> None:
        async with served(index="logs-{date}") as (bulk, sink):
            found = records(["a"])
            found.times[0] = time
            assert await sent(sink, found) == Taken()
            assert {name: each["@timestamp"] for (name, _), each in bulk.documents.items()} == {
                f"logs-{date}": time.decode()
            }

    run(test)


def test_any_dates_of_a_pod_make_as_many_indices_as_the_window_has_days() -> None:
    async def test() -> None:
        async with served(index="logs-{date}", daysBack=2, daysAhead=0) as (bulk, sink):
            found = records(["a"] * 5000)
            found.times[:] = [b"%04d-11-29T00:00:00Z" % (each + 1) for each in range(5000)]
            found.times[:30] = [b"2026-11-%02dT00:00:00Z" % (each + 1) for each in range(30)]
            assert await sent(sink, found) == Taken()
            assert {name for name, _ in bulk.documents} == {f"logs-2026.11.{day}" for day in (27, 28, 29)}

    run(test)


@pytest.mark.parametrize("written", [b"{}", b"{ }", b"{\t\n}", b'{ "a":1}', b'{"%b":"%x %"}'])
def test_objects_of_any_shape_stay_valid(written: bytes) -> None:
    sink = ElasticsearchSink("search", settings(1), 1)
    found = records(["a", "b"])
    found.objects[1] = written
    body = sink.encode([found]).body
    assert isinstance(body, bytes)
    documents = [json.loads(each) for each in gzip.decompress(body).splitlines()[1::2]]
    assert documents[0]["log"] == "a"
    assert documents[1]["kubernetes"]["pod_name"] == "web-1"
    assert {**documents[1], **json.loads(written)} == documents[1]


@given(st.lists(st.integers(0, (1 << 63) - 1), max_size=20))
def test_offsets_are_rendered_as_each_would_be(numbers: list[int]) -> None:
    assert hexadecimal(numbers) == [b"%x" % number for number in numbers]


NAMES = ["errors", "items", "create", "status", "error", "type", "reason", "caused_by"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.sampled_from([200, 400, 401, 404, 413, 429, 503]),
    st.binary(max_size=60) | VALUES.map(json.dumps).map(str.encode),
)
def test_whatever_is_answered_means_something_for_each_record(status: int, body: bytes) -> None:
    found = outcome(HttpAnswer(status, body, None), 2)
    if isinstance(found, Taken):
        assert status == 200 and {*found.again, *found.refused} <= {0, 1}
    else:
        assert found.why


@given(st.binary(max_size=200), st.integers(1, 50))
def test_whatever_a_server_says_is_an_answer_or_a_sink_error(data: bytes, size: int) -> None:
    reading = http_client._Reading()
    with suppress(SinkError):
        for at in range(0, len(data), size):
            reading.feed(data[at : at + size])
        assert reading.answer().status >= 200


def test_an_answer_that_nobody_asked_for_is_no_answer() -> None:
    reading = http_client._Reading()
    with pytest.raises(SinkError, match="more than it was asked"):
        reading.feed(2 * response(200, b"{}"))


@pytest.mark.parametrize(
    ("item", "outcome_of_all"),
    [(b"{}", Untaken), (b'{"create":{"status":500,"error":{"reason":"%b"}}}' % (b"x" * 8000), Indivisible)],
    ids=["millions of empty items", "items of any length"],
)
def test_an_answer_that_would_take_much_memory_is_not_decoded(
    item: bytes, outcome_of_all: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never:
        def decode(self, body: bytes) -> None:
            raise AssertionError(f"{len(body)} bytes are decoded")

    monkeypatch.setattr(elasticsearch, "_DECODER", Never())
    items = [item] * ((1 << 20) // len(item))
    body = b'{"errors":true,"items":[%b]}' % b",".join(items)
    assert isinstance(outcome(HttpAnswer(200, body, None), 100), outcome_of_all)
