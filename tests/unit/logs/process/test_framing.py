"""Lines taken out of the runtimes' formats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.process.framing import Lines, cri, docker, plain
from nodeagent.logs.process.times import are_times, is_time, rfc3339
from nodeagent.logs.records import Chunk

AT = b"2026-01-02T03:04:05.000006Z"
T1 = b"2026-01-01T00:00:00.123456789Z"
T2 = b"2026-01-01T00:00:00.12Z"


def chunk(data: bytes, start: int = 100) -> Chunk:
    return Chunk(b"f1", start, data)


def test_plain_lines_have_the_time_of_reading() -> None:
    assert plain(chunk(b"one\n\ntwo\r\nthree"), AT) == Lines(
        [100, 104, 105, 110], [AT] * 4, [b""] * 4, [b"one", b"", b"two", b"three"]
    )


def test_cri_lines() -> None:
    data = T1 + b" stdout F one two\n" + T2 + b" stderr P thr\n" + T2 + b" stderr F ee\n" + T1 + b" stdout F \n"
    found = cri(chunk(data, 0), AT)
    assert found.times == [T1, T2, T2, T1]
    assert found.streams == [b"stdout", b"stderr", b"stderr", b"stdout"]
    assert found.texts == [b"one two", b"thr", b"ee", b""]
    assert found.partial == [1]
    assert found.malformed == 0
    assert [data[at:].split(b"\n", 1)[0].split(b" ", 3)[3] for at in found.offsets] == found.texts


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no format",
        b"2026-01-01T00:00:00Z stdout F",
        b"2026-02-30T00:00:00Z stdout F text",
        b'2026-01-01T00:00:00Z"} stdout F text',
        b"2026-01-01T00:00:00.1Z2 stdout F text",
        b"2026-01-01T00:00:00.1234567890Z stdout F text",
        b"2026-01-01T24:00:00Z stdout F text",
        b"2026-01-01T00:00:60Z stdout F text",
        b"2026-01-01T00:00:00Z stdin F text",
        b"2026-01-01T00:00:00Z stdout Q text",
        b"2026-01-01T00:00:00Z stdout Frank text",
        b"\0\0\0\0 \0 F \0",
        T1.replace(b"T00", b"T24") + b" stdout F as wide as those beside it",
        T1.replace(b"-01T", b"-32T") + b" stderr F as wide as those beside it",
        T1 + b" stdouT F as wide as those beside it",
    ],
)
def test_a_line_that_is_not_of_cri_is_kept_as_text_and_counted(line: bytes) -> None:
    good = T1 + b" stdout F good\n"
    found = cri(chunk(good + line + b"\n" + good, 0), AT)
    assert found.texts == [b"good", line, b"good"]
    assert found.times == [T1, AT, T1]
    assert found.streams == [b"stdout", b"", b"stdout"]
    assert found.malformed == 1


_TIMES = (T1, T1.replace(b"T00", b"T23"), T1.replace(b"T00", b"T24"), T1.replace(b"-01T", b"-32T"), T2)
_HEADS = st.tuples(
    st.sampled_from(_TIMES), st.sampled_from((b"stdout", b"stderr", b"stdour")), st.sampled_from((b"F", b"P", b"Q"))
)
_TEXTS = st.sampled_from((b"", b"x", b" ", b"a stderr F b", T1 + b" stderr F x", b"\r", b"\xff"))
_LINES = st.builds(lambda head, text, end: b" ".join((*head, text))[:end], _HEADS, _TEXTS, st.integers(30, 60))


@given(st.lists(_LINES, min_size=1, max_size=4))
def test_lines_that_are_alike_are_taken_as_one_by_one(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    alone = cri(chunk(data, 2), AT)
    beside = cri(chunk(b"x\n" + data, 0), AT)
    assert beside.malformed == alone.malformed + 1
    assert beside.partial == [at + 1 for at in alone.partial]
    rest = range(1, len(beside))
    assert beside.only(rest) == alone.only(range(len(alone)))


def test_tags_behind_the_first_are_for_later_versions() -> None:
    found = cri(chunk(T1 + b" stdout P:later a\n" + T1 + b" stdout F:later b\n"), AT)
    assert (found.texts, found.partial, found.malformed) == ([b"a", b"b"], [0], 0)


def test_docker_lines() -> None:
    data = (
        b'{"log":"one \\u00e9\\n","stream":"stdout","time":"2026-01-01T00:00:00.12Z"}\n'
        b'{"log":"tw","stream":"stderr","attrs":{"a":"b"},"time":"2026-01-01T00:00:00.12Z"}\n'
        b'{"log":"x\\n","stream":"stdout","time":"yesterday"}\n'
        b"{\n"
    )
    found = docker(chunk(data, 0), AT)
    lines = data.split(b"\n")
    assert found.texts == ["one é".encode(), b"tw", lines[2], lines[3]]
    assert found.times == [T2, T2, AT, AT]
    assert found.partial == [1]
    assert found.malformed == 2


@pytest.mark.parametrize(
    ("data", "text"), [(b"a\xffb\n", "a\ufffdb"), (b"\xed\xa0\x80\n", "\ufffd\ufffd\ufffd"), ("é\n".encode(), "é")]
)
def test_texts_are_valid_utf8(data: bytes, text: str) -> None:
    assert plain(chunk(data), AT).texts == [text.encode()]
    assert cri(chunk(T1 + b" stdout F " + data), AT).valid().texts == [text.encode()]


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (b"2026-01-01T00:00:00Z", True),
        (b"2026-01-01T00:00:00.5+09:00", True),
        (b"2024-02-29T23:59:59.999999999Z", True),
        (b"2023-02-29T00:00:00Z", False),
        (b"0000-01-01T00:00:00Z", False),
        (b"2026-1-01T00:00:00Z", False),
        (b"2026-01-01T00:00:00", False),
        (b"2026-01-01T00:00:00.Z", False),
        (b"2026-01-01T00:00:00Z\n", False),
    ],
)
def test_what_is_a_time(text: bytes, taken: bool) -> None:
    assert is_time(text) is taken
    assert are_times([T1, text, T2]) is taken


def test_a_time_is_written_as_it_is_read() -> None:
    assert rfc3339(1.5) == b"1970-01-01T00:00:01.500000Z"
    assert is_time(rfc3339(1_700_000_000.0))
