"""Chunks of a file made into records: the same ones wherever chunks begin, nothing lost, valid whatever is read."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodeagent.logs.process.joining import PIECES_WAIT, REACH, joined_offset
from nodeagent.logs.process.limits import ByteRate
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.multiline import Multiline, preset
from nodeagent.logs.process.origin import OriginFacts, make_origin
from nodeagent.logs.process.parsers import NoParser, TextParser, parser
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.processor import ProcessCounts, Processor, Recipe
from nodeagent.logs.process.rules import DropRule, RedactRule
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.records import Chunk, LogRecords
from nodeagent.vocabulary import PodUid
from tests.unit.logs.process.strict import strict

FACTS = OriginFacts(PodUid("u1"), "shop", "web-1", "app", "", "node1", {"app": "web", "app.kubernetes.io/name": "x"})
ORIGIN = make_origin(FACTS, "kube.shop.web-1.app", ("search",))
NOW = 1_700_000_000.0
T = b"2026-01-01T00:00:00.5Z"
TRACE = Multiline(start=LinePattern(r"^\d"), max_lines=4)


def out(text: bytes, stream: bytes = b"stdout", tag: bytes = b"F") -> bytes:
    return T + b" " + stream + b" " + tag + b" " + text + b"\n"


def processed(
    data: bytes, recipe: Recipe, counts: ProcessCounts | None = None, rate: ByteRate | None = None
) -> LogRecords:
    """The records of one whole file."""
    processor = Processor(ORIGIN, recipe, counts or ProcessCounts(), rate)
    return merged([processor.feed(Chunk(b"f", 0, data), NOW), processor.flush(NOW, final=True)])


def merged(parts: list[LogRecords | None]) -> LogRecords:
    made = LogRecords(ORIGIN, b"f", 0)
    for part in parts:
        if part is not None:
            made.offsets += part.offsets
            made.times += part.times
            made.streams += part.streams
            made.texts += part.texts
            made.objects += part.objects
            made.read += part.read
            made.end = part.end
    return made


@pytest.mark.parametrize("chosen", [parser("auto"), parser("logfmt"), parser("none")])
def test_a_text_has_the_member_that_is_asked_for(chosen: TextParser) -> None:
    """ECS has ``log`` as an object: an index with texts there would refuse it."""
    data = out(b"a text") + out(b'{"log":{"level":"info"}}') + out(b'{"log.level":"info"}')
    found = [strict(each) for each in processed(data, Recipe(parser=chosen, text="message")).objects]
    assert found[0] == {"message": "a text"}
    if chosen == parser("auto"):
        assert found[1:] == [{"log": {"level": "info"}}, {"log.level": "info"}], "what ECS says stays as it is"


def rows(records: LogRecords) -> list[tuple[int, bytes, bytes, bytes, bytes]]:
    columns = zip(records.offsets, records.times, records.streams, records.texts, records.objects, strict=True)
    return sorted(columns)


# -- what comes out --


def test_records_of_a_container() -> None:
    counts = ProcessCounts()
    data = out(b'{"a":1}') + out(b"text", b"stderr") + out(b"")
    found = processed(data, Recipe("cri", NoParser(), parser("json")), counts)
    assert found.texts == [b'{"a":1}', b"text"]
    assert [strict(made) for made in found.objects] == [{"log": '{"a":1}'}, {"log": "text"}]
    assert found.times == [T, T]
    assert found.streams == [b"stdout", b"stderr"]
    assert (found.end, found.read) == (len(data), len(data))
    assert counts == ProcessCounts(lines=3, records=2, dropped=counts.dropped, unparsed=1)
    assert dict(counts.dropped) == {"empty": 1}


def test_pieces_of_a_line_are_joined_by_stream() -> None:
    data = out(b"a", tag=b"P") + out(b"x", b"stderr") + out(b"b", tag=b"P") + out(b"c") + out(b"d")
    counts = ProcessCounts()
    found = processed(data, Recipe(), counts)
    line = len(out(b"a"))
    assert list(zip(found.offsets, found.texts, strict=True)) == [
        (line, b"x"),
        (joined_offset(0, 3 * line), b"abc"),
        (4 * line, b"d"),
    ]
    assert (counts.lines, counts.records, counts.joined) == (5, 3, 2)


def test_what_is_held_is_not_covered_and_comes_out_in_time() -> None:
    processor = Processor(ORIGIN, Recipe(), ProcessCounts())
    first = processor.feed(Chunk(b"f", 100, out(b"x") + out(b"a", tag=b"P")), NOW)
    held_at = 100 + len(out(b"x"))
    assert (first.texts, first.end, first.read) == ([b"x"], held_at, len(out(b"x")))
    assert (processor.held_since, processor.held_lines) == (NOW, 1)
    assert processor.flush(NOW + PIECES_WAIT - 1) is None
    last = processor.flush(NOW + PIECES_WAIT)
    assert last is not None
    assert (last.texts, last.end, last.read) == ([b"a"], held_at + len(out(b"a")), len(out(b"a")))
    assert processor.held_since is None


def test_a_clock_that_is_set_back_holds_nothing_for_longer() -> None:
    processor = Processor(ORIGIN, Recipe(), ProcessCounts())
    processor.feed(Chunk(b"f", 0, out(b"a", tag=b"P")), NOW)
    assert processor.flush(NOW - 3600) is not None


def test_a_piece_without_end_is_bounded() -> None:
    counts = ProcessCounts()
    data = b"".join(out(b"%04d" % at, tag=b"P") for at in range(1000))
    found = processed(data, Recipe(record_bytes=100), counts)
    assert b"".join(found.texts) == b"".join(b"%04d" % at for at in range(1000))
    assert max(map(len, found.texts)) <= 100
    assert counts.cut == len(found) - 1


@given(
    st.text("a日é\U0001f600\r ", min_size=1, max_size=12), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 5),
    st.sampled_from([None, TRACE]), st.sampled_from([b"", b"\xff"]),
)  # fmt: skip
@example("日本語", [4], 0, None, b"")
@example("a\r", [2], 0, None, b"")
def test_a_character_that_the_runtime_cut_is_whole_again(
    text: str, cuts: list[int], chunks: int, multiline: Multiline | None, beside: bytes
) -> None:
    """Nor is a carriage return within a line lost, wherever the line is cut and chunks begin."""
    line = text.encode()
    bounds = [0, *sorted({min(each, len(line)) for each in cuts} - {0}), len(line)]
    pieces = [line[first:last] for first, last in pairwise(bounds)]
    data = [out(piece, tag=b"P") for piece in pieces[:-1]] + [out(pieces[-1])]
    data.insert(1, out(b"x" + beside, b"stderr"))
    processor = Processor(ORIGIN, Recipe(multiline=multiline), ProcessCounts())
    parts: list[LogRecords | None] = []
    start = 0
    for part in (b"".join(data[:chunks]), b"".join(data[chunks:])):
        if part:
            parts.append(processor.feed(Chunk(b"f", start, part), NOW))
            start += len(part)
    found = merged([*parts, processor.flush(NOW, final=True)])
    expected = {text.removesuffix("\r"), "x" + beside.decode("utf-8", "replace")} - {""}
    assert {each.decode() for each in found.texts} == expected


def test_a_line_in_pieces_that_is_as_long_as_may_be_is_not_cut() -> None:
    for most, whole in ((100, 1), (99, 2)):
        counts = ProcessCounts()
        data = out(b"x" * 33, tag=b"P") + out(b"x" * 33, tag=b"P") + out(b"x" * 34)
        assert len(processed(data, Recipe(record_bytes=most), counts)) == whole
        assert counts.cut == whole - 1
    lines = out(b"1") + out(b"x" * 48) + out(b"x" * 49)  # with ends of lines 100 bytes
    assert len(processed(lines, Recipe(multiline=TRACE, record_bytes=100))) == 1
    assert len(processed(lines, Recipe(multiline=TRACE, record_bytes=99))) == 2


def test_what_is_held_does_not_hold_up_a_file_for_long() -> None:
    processor = Processor(ORIGIN, Recipe(), ProcessCounts())
    processor.feed(Chunk(b"f", 0, out(b"a", tag=b"P")), NOW)
    later = processor.feed(Chunk(b"f", REACH + 1, out(b"x", b"stderr")), NOW)
    assert later.texts == [b"a", b"x"]
    assert later.end == REACH + 1 + len(out(b"x", b"stderr"))


def test_a_trace_is_one_record() -> None:
    data = out(b"1 start") + out(b" at a") + out(b" at b", b"stderr") + out(b" at c") + out(b"2 next")
    found = processed(data, Recipe(multiline=TRACE))
    assert sorted(found.texts) == [b" at b", b"1 start\n at a\n at c", b"2 next"]
    assert strict(found.objects[found.texts.index(b"1 start\n at a\n at c")]) == {"log": "1 start\n at a\n at c"}


def test_a_trace_is_cut_by_lines_and_waited_for() -> None:
    counts = ProcessCounts()
    found = processed(out(b"1") + out(b" a") * 9, Recipe(multiline=TRACE), counts)
    assert [text.count(b"\n") for text in found.texts] == [3, 3, 1]
    assert counts.cut == 2
    processor = Processor(ORIGIN, Recipe(multiline=TRACE), ProcessCounts())
    assert processor.feed(Chunk(b"f", 0, out(b"1")), NOW).texts == []
    assert processor.flush(NOW + TRACE.flush_after - 0.1) is None
    flushed = processor.flush(NOW + TRACE.flush_after)
    assert flushed is not None
    assert flushed.texts == [b"1"]


TRACES = {
    "java": """ERROR failed
java.lang.IllegalStateException: no
\tat a.B.c(B.java:1)
\t... 3 more
Caused by: java.io.IOException: disk
\tat d.E.f(E.java:2)""",
    "python": """ERROR failed
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
shop.errors.OutOfStockError""",
    "go": """panic: oops

goroutine 1 [running]:
main.(*T).f(0x1, {0x2})
\t/app/main.go:5 +0x1
created by main.main
\t/app/main.go:9 +0x2
exit status 2""",
    "ruby": """a.rb:1:in `f': no (RuntimeError)
\tfrom a.rb:2:in `<main>'""",
    "dotnet": """fail: x
      System.Exception: no
         at A.B() in a.cs:1
   --- End of inner exception ---""",
    "indented": "head\n one\n\ttwo",
}


TRACEBACK = """ERROR failed
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    get()"""


@pytest.mark.parametrize(
    "last",
    [
        "_queue.Empty",
        "requests.exceptions.Timeout",
        "shop.models.Item.DoesNotExist: no item",
        "socket.timeout: timed out",
    ],
)
@pytest.mark.parametrize("cut", range(7))
def test_a_traceback_ends_with_its_exception_whatever_that_is_called(last: str, cut: int) -> None:
    """And nothing else goes on with it, nor with other lines that are indented."""
    trace = f"{TRACEBACK}\n{last}"
    lines = [*trace.split("\n"), "worker: next", "  indented", "worker: last"]
    processor = Processor(ORIGIN, Recipe(multiline=preset("python")), ProcessCounts())
    parts: list[LogRecords | None] = []
    start = 0
    for part in (lines[:cut], lines[cut:]):
        data = b"".join(out(each.encode()) + out(b"beside", b"stderr") for each in part)
        if data:
            parts.append(processor.feed(Chunk(b"f", start, data), NOW))
            start += len(data)
    found = merged([*parts, processor.flush(NOW, final=True)])
    out_of_it = [text.decode() for text in found.texts if text != b"beside"]
    assert out_of_it == [trace, "worker: next\n  indented", "worker: last"]


@pytest.mark.parametrize(("name", "trace"), TRACES.items())
def test_traces_of_languages(name: str, trace: str) -> None:
    lines = ["2026 INFO before", *trace.split("\n"), "2026 INFO after", "2026 INFO last"]
    data = b"".join(out(line.encode()) for line in lines)
    found = processed(data, Recipe(multiline=preset(name)))
    assert [text.decode() for text in found.texts] == ["2026 INFO before", trace, "2026 INFO after", "2026 INFO last"]


def test_pretty_json_of_several_lines_is_an_object() -> None:
    recipe = Recipe("plain", multiline=Multiline(start=LinePattern(r"^\{")))
    found = processed(b'{\n  "a": 1\n}\n', recipe)
    assert [strict(made) for made in found.objects] == [{"a": 1}]


def test_rules_drop_and_redact() -> None:
    rules = (
        DropRule(LinePattern("GET /healthz")),
        DropRule(LinePattern("^debug$"), RecordMember("level")),
        RedactRule(LinePattern(r"\d{4}-\d{4}"), "****"),
        RedactRule(LinePattern(".+"), r"\1 gone", RecordMember("user.password")),
    )
    counts = ProcessCounts()
    lines = [
        b'{"msg":"GET /healthz"}',
        b'{"level":"debug"}',
        b'{"level":"debugging","card":"1234-5678"}',
        b"card 1234-5678 and 8765-4321",
        b'{"user":{"name":"a","password":"p\\"q"},"n":1.50}',
        b'{"user.password":12}',
        b'{"user":"x"}',
    ]
    found = processed(b"".join(out(line) for line in lines), Recipe(rules=rules), counts)
    assert [strict(made) for made in found.objects] == [
        {"level": "debugging", "card": "****"},
        {"log": "card **** and ****"},
        {"user": {"name": "a", "password": "\\1 gone"}, "n": 1.5},
        {"user.password": "\\1 gone"},
        {"user": "x"},
    ]
    assert b'"n":1.50' in found.objects[2]
    assert not any(b"p\\" in text or b"1234-5678" in text for text in found.texts)
    assert counts.dropped["rule"] == 2


def test_streams_are_left_out() -> None:
    counts = ProcessCounts()
    found = processed(out(b"a") + out(b"b", b"stderr"), Recipe(without=frozenset((b"stderr",))), counts)
    assert (found.texts, counts.dropped["excluded"]) == ([b"a"], 1)


def test_a_pod_that_logs_more_than_it_may() -> None:
    rate = ByteRate(100, burst_seconds=1)
    counts = ProcessCounts()
    assert len(processed(out(b"x" * 30) * 5, Recipe(), counts, rate)) == 3
    assert counts.dropped["rate"] == 2
    assert rate.take([100], NOW + 0.5) == 0
    assert rate.take([50, 50], NOW + 0.5) == 1
    assert rate.take([1], NOW) == 1
    assert rate.take([500, 1], NOW + 100) == 1
    assert rate.take([1], NOW + 100) == 0
    assert rate.take([], NOW) == 0


@pytest.mark.parametrize(
    ("form", "value", "time"),
    [
        ("", b'"2026-01-02T03:04:05.123456789+09:00"', b"2026-01-02T03:04:05.123456789+09:00"),
        ("", b'"2026-01-02 03:04:05,123"', b"2026-01-02T03:04:05.123000Z"),
        ("", b"1700000000.25", b"2023-11-14T22:13:20.250000Z"),
        ("", b'"1700000000250"', b"2023-11-14T22:13:20.250000Z"),
        ("%d/%b/%Y:%H:%M:%S %z", b'"14/Nov/2023:22:13:20 +0100"', b"2023-11-14T21:13:20.000000Z"),
        ("%Y-%m-%dT%H:%M:%S.%LZ", b'"2026-01-02T03:04:05.123456789Z"', b"2026-01-02T03:04:05.123456Z"),
        ("%b %d %H:%M:%S", b'"Feb 28 01:02:03"', b"2023-02-28T01:02:03.000000Z"),
        ("%s", b"1700000000", b"2023-11-14T22:13:20.000000Z"),
        ("", b'"yesterday"', T),
        ("", b"1e999", T),
        ("", b"null", T),
        ("", b"[1]", T),
        ("%s", b'"1e30"', T),
        ("%s", b'"nan"', T),
    ],
)
def test_a_member_says_when(form: str, value: bytes, time: bytes) -> None:
    recipe = Recipe(parser=parser("json", time=TimeKey(RecordMember("at"), form)))
    found = processed(out(b'{"at":' + value + b"}") + out(b'{"b":1}'), recipe)
    assert found.times == [time, T]


# -- whatever comes --

PIECES = st.sampled_from(
    [
        b'{"a":1}',
        b'{"stream":1}',
        b'{"a":[1',
        b"2]}",
        b'{"b":1}{"c":2}',
        b"{}",
        b"1",
        b" x",
        b"",
        b'"',
        b"\\",
        b"\r",
        b"\xff",
        b"\0",
        b"\xc3",
        b"a=b",
        b'k="v',
        b"{",
        b"}",
        b" ",
        "é".encode(),
        b'{"a":NaN}',
        b"debug",
        b"{{{",
    ]
)
TEXTS = st.lists(PIECES, max_size=4).map(b"".join)
CRI_LINES = st.builds(
    out, TEXTS, st.sampled_from([b"stdout", b"stderr"]), st.sampled_from([b"F", b"F", b"P", b"F:x", b"Q"])
)
FILES = st.lists(st.one_of(CRI_LINES, TEXTS.map(lambda text: text + b"\n")), max_size=12)
RECIPES = st.builds(
    Recipe,
    st.sampled_from(["cri", "plain", "docker"]),
    st.sampled_from([parser(kind) for kind in ("auto", "json", "logfmt", "none")])
    | st.just(parser("regex", r"(?P<stream>[a-z]+)(?P<b>=)?")),
    multiline=st.sampled_from([None, None, TRACE, preset("java"), preset("go")]),
    rules=st.sampled_from([(), (DropRule(LinePattern(r"debug\s*")), RedactRule(LinePattern("é|^x| "), "\n"))]),
    record_bytes=st.sampled_from([16, 1 << 20]),
)


@given(FILES, RECIPES, st.lists(st.integers(0, 12), max_size=4))
@example([out(b"1"), out(b"1", b"stderr"), out(b" x", b"stderr"), out(b" x")], Recipe(multiline=TRACE), [2, 3])
def test_records_are_the_same_wherever_chunks_begin(lines: list[bytes], recipe: Recipe, cuts: list[int]) -> None:
    """And none is lost, nor named twice; read again from where the file is covered, the rest is the same."""
    counts = ProcessCounts()
    whole = processed(b"".join(lines), recipe, counts)
    assert counts.lines == len(lines)
    assert counts.lines == counts.records + counts.joined + counts.dropped.total()
    assert whole.read == whole.end == sum(map(len, lines))
    assert len(set(whole.offsets)) == len(whole)
    for made, text in zip(whole.objects, whole.texts, strict=True):
        strict(made)
        text.decode()
    bounds = [0, *sorted(min(cut, len(lines)) for cut in cuts), len(lines)]
    processor = Processor(ORIGIN, recipe, ProcessCounts())
    parts: list[LogRecords | None] = []
    start = 0
    for first, last in pairwise(bounds):
        data = b"".join(lines[first:last])
        if data:
            parts.append(processor.feed(Chunk(b"f", start, data), NOW))
            start += len(data)
            covered = parts[-1].end if parts[-1] is not None else 0
            again = Processor(ORIGIN, recipe, ProcessCounts())
            rest = merged(
                [again.feed(Chunk(b"f", covered, b"".join(lines)[covered:]), NOW), again.flush(NOW, final=True)]
            )
            assert set(rows(rest)) <= set(rows(whole))
            assert set(rows(merged(parts))) | set(rows(rest)) == set(rows(whole))
    parts.append(processor.flush(NOW, final=True))
    assert rows(merged(parts)) == rows(whole)


@given(st.binary(max_size=200), RECIPES)
def test_any_bytes_are_records(data: bytes, recipe: Recipe) -> None:
    found = processed(data, recipe)
    assert found.end == len(data)
    for made in found.objects:
        strict(made)


def test_records_of_two_streams_that_reach_over_each_other_for_ever_hold_up_only_so_much() -> None:
    ladder = ((b"stdout", b"a"), (b"stderr", b"\tb"), (b"stderr", b"c"), (b"stdout", b"\td"))
    data = b"".join(out(text.ljust(4000, b"."), stream) for stream, text in ladder)
    processor = Processor(ORIGIN, Recipe(multiline=preset("java")), ProcessCounts())
    start = 0
    ends = [0]
    for _ in range(3 * REACH // len(data)):
        ends.append(processor.feed(Chunk(b"f", start, data), NOW).end)
        start += len(data)
    assert ends == sorted(ends)
    assert start - ends[-1] <= 2 * REACH


def test_a_hole_within_a_file_is_no_record() -> None:
    counts = ProcessCounts()
    processor = Processor(ORIGIN, Recipe(framing="plain"), counts)
    assert processor.feed(Chunk(b"f", 0, b"one\n"), NOW).texts == [b"one"]
    hole = processor.feed(Chunk(b"f", 4, bytes(1 << 20)), NOW)
    assert (len(hole), hole.end) == (0, 4 + (1 << 20))
    assert processor.feed(Chunk(b"f", hole.end, b"\0two\n", first_of_line=False), NOW).texts == [b"\0two"]
    assert (counts.lines, counts.records, counts.dropped) == (3, 2, {"empty": 1})
