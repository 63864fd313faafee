"""Lines that are made to break who reads them: each comes out of every parser and goes into every sink, in time,
and says of nobody else what it is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import ormsgpack
import pytest

from nodeagent.logs.process.framing import Framing
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.parsers import AUTO, TextParser, parser
from nodeagent.logs.process.processor import ProcessCounts, Processor, Recipe
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.records import Chunk, LogRecords
from nodeagent.logs.sinks.documents import documents
from nodeagent.logs.sinks.making import make_sink
from nodeagent.logs.sinks.settings import SinkSettings
from nodeagent.logs.sinks.sink import LogSink
from tests.unit.logs.made_records import origin

LINES = {
    "NUL": b"a\0b\0" * 100,
    "no UTF-8": b"\xff\xfe\xc3\x28" * 1000,
    "100,000 open lists": b'{"a":' + b"[" * 100_000,
    "100,000 lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "as deep as is taken": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "objects as deep": b'{"a":' * 600 + b"1" + b"}" * 600,
    "a number of 5,000 digits": b'{"n":' + b"9" * 5000 + b"}",
    "a number beyond a double": b'{"n":1e999999999}',
    "a number beyond 64 bits": b'{"n":18446744073709551616}',
    "keys twice": b'{"a":1,"a":2,"a":3}',
    "metadata": b'{"kubernetes":{"namespace_name":"kube-system"},"@timestamp":"1999","stream":"x","kubernetes":1}',
    "metadata, escaped": b'{"\\u006bubernetes":{"namespace_name":"kube-system"},"\\u0040timestamp":"1999"}',
    "an action of _bulk": b'{"a":"x"}\r{"delete":{"_index":"a","_id":"1"}}',
    "half a character": b'{"a":"\\ud800"}',
    "half a character as a key": b'{"\\udfff":1}',
    "keys without names": b'{"":1,".":2,"..":3,"a.":4,".a":5}',
    "50,000 keys": b"{" + b",".join(b'"k%d":1' % number for number in range(50_000)) + b"}",
    "a key of half a megabyte": b'{"' + b"k" * 500_000 + b'":1}',
    "logfmt without values": b"a=" * 100_000,
    "logfmt with escapes": b'a="' + b'\\"' * 100_000,
    "braces": b"{" * 300_000,
    "quotes": b'"' * 300_000,
    "a megabyte of escapes": b'{"a":"' + b"\\\\" * 300_000 + b'"}',
}
SINKS = (
    {"elasticsearch": {"urls": ["http://x"]}},
    {"loki": {"urls": ["http://x"]}},
    {"otlp": {"address": "x:1", "plaintext": True}},
    {"forward": {"addresses": ["x:1"], "gzip": False}},
    {"file": {"path": "/x"}},
)


def framed(line: bytes, framing: Framing) -> bytes:
    if framing == "cri":
        return b"2026-01-01T00:00:00.000000000Z stdout F " + line + b"\n"
    if framing == "docker":
        text = line.decode("utf-8", "replace") + "\n"
        return json.dumps({"log": text, "stream": "stdout", "time": "2026-01-01T00:00:00Z"}).encode() + b"\n"
    return line + b"\n"


def processed(line: bytes, framing: Framing, text: TextParser) -> LogRecords:
    made = Processor(origin("web-1"), Recipe(framing=framing, parser=text), ProcessCounts(), None)
    return made.feed(Chunk(b"f00d", 0, framed(line, framing), True), 1767225600.0)


def sinks() -> Sequence[LogSink]:
    return [make_sink(SinkSettings.model_validate({"name": "x", **each})) for each in SINKS]


@pytest.mark.parametrize("framing", ["plain", "cri", "docker"])
@pytest.mark.parametrize("text", [AUTO, parser("json"), parser("logfmt")], ids=["auto", "json", "logfmt"])
@pytest.mark.parametrize("name", LINES)
def test_a_hostile_line_is_a_record_of_its_pod_for_every_sink(name: str, text: TextParser, framing: Framing) -> None:
    records = processed(LINES[name], framing, text)
    assert len(records) == 1
    for sink in sinks():
        assert sink.encode([records]).body
    (document,) = documents(records)
    assert b"\n" not in document
    pairs = (
        json.loads(document, object_pairs_hook=list, parse_int=str)
        if document.count(b"[") + document.count(b"{") < 500
        else []
    )
    for whose in ("kubernetes", "@timestamp"):
        assert sum(1 for key, _ in pairs if key == whose) <= 1, "one of these is the pod's own invention"
    if pairs:
        assert dict(pairs)["kubernetes"][0] == ("namespace_name", "shop")


def test_what_messagepack_cannot_hold_goes_to_a_forward_input_as_text() -> None:
    (sink,) = [each for each in sinks() if type(each).__name__ == "ForwardSink"]
    for name in ("as deep as is taken", "a number of 5,000 digits", "a number beyond a double"):
        (message,) = sink.encode([processed(LINES[name], "plain", AUTO)]).body
        assert isinstance(message, bytes)
        _, packed, _ = ormsgpack.unpackb(message)
        _, record = ormsgpack.unpackb(packed, ext_hook=lambda _kind, data: data)
        assert record["log"].encode() == LINES[name]
        assert record["kubernetes"]["namespace_name"] == "shop"


TIMES = ("1960-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "2600-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "99999999999",
         "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59.999999999Z", "0", "-1", "9" * 19)  # fmt: skip


@pytest.mark.parametrize("time", TIMES)
def test_a_hostile_time_is_within_what_every_sink_has_room_for(time: str) -> None:
    text = parser("json", "", TimeKey(RecordMember("time"), ""))
    records = processed(b'{"time":"%b"}' % time.encode(), "plain", text)
    for sink in sinks():
        assert sink.encode([records]).body
    loki = make_sink(SinkSettings.model_validate({"name": "x", "loki": {"urls": ["http://x"], "gzip": False}}))
    body = loki.encode([records]).body
    assert isinstance(body, bytes)
    (stream,) = json.loads(body)["streams"]
    assert -1 << 63 <= int(stream["values"][0][0]) < 1 << 63
