"""Texts as objects that a strict server takes, and that repeat no name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.process.objects import LogObjects, member_names
from nodeagent.logs.process.search import has
from tests.unit.logs.process.strict import strict

OBJECTS = LogObjects(("kubernetes",))
GOOD = b'{"a":1,"b":[{"c":"}\\n{"}]}'


def test_objects_stay_as_they_are() -> None:
    texts = [GOOD, b'{"x":{}}', b'{"nested":{"stream":1}}']
    objects, others = OBJECTS.of_json(texts)
    assert objects is texts
    assert others == []


@pytest.mark.parametrize(
    "texts",
    [
        [b'{"a":[1', b"2]}", b'{"b":1},{"c":2}'],
        [b'{"a":[{"b":1}', b'{"c":2}]}', b'{"d":1}{"e":2}'],
        [b'{"a":[1,', b"2]}", b"{} {}"],
        [b'{"a":"', b'"}', b'{"a":1} {"b":2}'],
    ],
)
def test_lines_that_are_valid_only_together_are_text(texts: list[bytes]) -> None:
    objects, others = OBJECTS.of_json(texts)
    assert others == [0, 1, 2]
    assert [strict(found) for found in objects] == [{"log": text.decode()} for text in texts]


@pytest.mark.parametrize(
    "text",
    [
        b"plain",
        b"",
        b"{}",
        b"{ }",
        b"[1]",
        b'"a"',
        b"1",
        b"null",
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\\ud800"}',
        b'{"a":"\x00"}',
        b'{"a":1',
        b'{"a":1}x',
        b'{"a":1,}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"{'a':1}",
        b"\x00\x01\x7f",
        "\ufeff{}".encode(),
    ],
)
def test_what_is_no_object_is_text_in_one(text: bytes) -> None:
    objects, others = OBJECTS.of_json([GOOD, text, GOOD])
    assert (objects[0], objects[2], others) == (GOOD, GOOD, [1])
    assert strict(objects[1]) == {"log": text.decode()}
    assert OBJECTS.of_json([text])[1] == [0]


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (b'{"stream":"x","a":1}', {"app_stream": "x", "a": 1}),
        (b'{"str\\u0065am":"x"}', {"app_stream": "x"}),
        (b'{"@timestamp":1,"kubernetes":{"a":[1.50]}}', {"app_timestamp": 1, "app_kubernetes": {"a": [1.5]}}),
        (b'{"kubernetes.pod_name":"x","a":1}', {"app_kubernetes.pod_name": "x", "a": 1}),
        (b'{"@timestamp.x":1,"stream.":2,"streams.a":3}', {"app_timestamp.x": 1, "app_stream.": 2, "streams.a": 3}),
        (b'{"kubernete\\u0073.a":1}', {"app_kubernetes.a": 1}),
        (b'{"kubernetes\\u002Ea":1}', {"app_kubernetes.a": 1}),
        (b'{"a":"\\u0065 is escaped","b":{"stream.x":1}}', {"a": "e is escaped", "b": {"stream.x": 1}}),
        (b'{"stream":1,"app_stream":2}', {"app_app_stream": 1, "app_stream": 2}),
        (b'{"stream":1,"stream":2}', {"app_stream": 2}),
        (b' { "a" : 1 } \r', {"a": 1}),
        (b'{"a":\n[1,\n2]}', {"a": [1, 2]}),
        (b'{\n"stream":\n[1,\n2]}', {"app_stream": [1, 2]}),
        (b'{"":0}', {"": 0}),
        (b'{"n":123456789012345678901234567890,"e":1e5}', {"n": 123456789012345678901234567890, "e": 1e5}),
    ],
)
def test_objects_that_are_not_as_a_sink_needs_them(text: bytes, members: dict[str, object]) -> None:
    objects, others = OBJECTS.of_json([GOOD, text])
    assert others == []
    assert strict(objects[1]) == members


@given(st.text('ab."\0é', max_size=40).map(str.encode), st.text('ab."\0é', min_size=1, max_size=3).map(str.encode))
def test_bytes_among_others_are_found_as_in_finds_them(text: bytes, part: bytes) -> None:
    assert has(text, part) == (part in text)


def test_text_is_kept_whatever_is_in_it() -> None:
    texts = ['quote " back \\ tab \t nul \0 é \U0001f600 \u2028', "a\nb"]
    assert [strict(found) for found in OBJECTS.of_text([text.encode() for text in texts])] == [
        {"log": text} for text in texts
    ]
    assert OBJECTS.of_text([]) == []


def test_members_that_are_spliced_in_have_names() -> None:
    assert member_names(b'"kubernetes":{"a":1},"log_file":"x"') == ("kubernetes", "log_file")
    assert member_names(b"") == ()
    with pytest.raises(ValueError, match="not the members"):
        member_names(b'"a"')
