"""YAML from others: what it means, and what cannot hurt."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.resources.yaml_text import OBJECT, load, plain, split


def test_values() -> None:
    text = "a: &x [1, 2]\nb: *x\nc: 2001-01-01\n8080: {x: yes}\nd: |\n  line\n"
    assert load(text) == [{"a": [1, 2], "b": [1, 2], "c": "2001-01-01", "8080": {"x": True}, "d": "line\n"}]
    assert load("# nothing\n") == []
    assert load("a: 1\n--- # second\nb: 2\n") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: the key 'a' stands twice"),
        ("? [a]\n: 1", "line 1: the key [] is not text"),
        ("1.5: 1", "line 1: the key 1.5 is not text"),
        ("~: 1", "line 1: the key None is not text"),
        ("{1: a, '1': b}", "the key '1' stands twice"),
        ("a: *b", "line 1: alias 'b' without an anchor"),
        ("a: &a [*a]", "alias 'a' without an anchor"),
        ("a: &b {x: 1}\nc:\n  <<: *b", "line 3: merge keys"),
        ("a: ]", "line 1"),
        ("\x00", "not YAML"),
        ("a: !!bool maybe", "line 1: 'maybe': no bool, as its tag says"),
        ("a:\n  !!int ''", "line 2: '': no int"),
        ("a: !!int true", "'true': no int"),
        ("a: !!float '.'", "'.': no float"),
        ("a: !!null x", "'x': no null"),
        ("a: !!timestamp 2026-01-01", "the tag 'tag:yaml.org,2002:timestamp' makes a type that JSON has not"),
        ("a: !!binary aGk=", "2002:binary"),
        ("a: !!set {b}", "2002:set"),
        ("!!omap [a: b]", "2002:omap"),
        ("a: !!int {b: c}", "2002:int"),
        ("a: !mine x", "the tag '!mine'"),
        ("a: !!python/name:os.system x", "python/name:os.system"),
        ("a: .inf", "'.inf': JSON has no such number"),
        ("a: -.INF", "JSON has no such number"),
        ("a: .nan", "JSON has no such number"),
        ('a: "\\ud800"', "line 1"),
        ("a: \ud800", "not YAML: UnicodeEncodeError"),
        ("[" * 200_000, "nested deeper than 64"),
        ("{a: " * 200_000, "nested deeper than 64"),
        ("- " * 200_000, "nested deeper than 64"),
        (
            "a0: &a0 [" + "x, " * 10 + "]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 12)),
            "more than 200000 values",
        ),
    ],
)
def test_what_is_wrong_names_its_line(text: str, words: str) -> None:
    with pytest.raises(ResourceError, match=r"not YAML") as caught:
        load(text)
    assert words in str(caught.value)


def test_a_marker_ends_a_document_even_within_a_block() -> None:
    text = "a: |\n  x\n---\nb: 1\n--- {c: 2}\n----: 3\n"
    parts = split(text)
    assert [line for line, _ in parts] == [0, 2, 4]
    assert [value for line, part in parts[:2] for value in load(part, line)] == list(
        yaml.safe_load_all("".join(part for _, part in parts[:2]))
    )
    with pytest.raises(ResourceError, match="line 7"):
        load("a: ]", 6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("On", True),
        ("y", True),
        ("NO", False),
        ("off", False),
        ("n", False),
        ("yEs", "yEs"),
        ("~", None),
        ("", None),
        ("Null", None),
        ("nUll", "nUll"),
        ("017", 15),
        ("0o17", 15),
        ("0b11", 3),
        ("0x1F", 31),
        ("08", 8.0),
        ("1_000", 1000),
        ("-0", 0),
        ("+5", 5),
        ("_1", "_1"),
        ("18446744073709551615", (1 << 64) - 1),
        ("-9223372036854775809", -float(1 << 63)),
        ("9" * 300, 1e300),
        ("9" * 5000, "9" * 5000),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e999", "1e999"),
        (".", "."),
        ("-", "-"),
        ("1.2.3", "1.2.3"),
        ("12:30:45", "12:30:45"),
        ("1:20", "1:20"),
        ("1" + ":00" * 180 + ".5", "1" + ":00" * 180 + ".5"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("2026-99-99", "2026-99-99"),
        ("=", "="),
    ],
)
def test_a_plain_scalar_is_what_go_makes_of_it(text: str, value: object) -> None:
    """As resolve.go of sigs.k8s.io/yaml/goyaml.v2 has it, and JSON's types only."""
    found = plain(text)
    assert (found, type(found)) == (pytest.approx(value) if isinstance(value, float) else value, type(value))


def test_tags_that_say_what_json_has() -> None:
    assert load(
        "{a: !!str 5, b: !!int '0x10', c: !!float 1, d: !!bool 'no', e: !!null '', f: ! 5, g: !!map {}, h: "
        "!!seq [], on: 1}"
    ) == [{"a": "5", "b": 16, "c": 1.0, "d": False, "e": None, "f": "5", "g": {}, "h": [], "true": 1}]


def test_a_document_is_bounded_by_what_its_aliases_stand_for() -> None:
    """Kubernetes' bound, on the text and on its value: a kilobyte in 16 KB of aliases is a kilobyte each time."""
    assert load(f"a: {'x' * (OBJECT.bytes - 100)}")
    for text in (
        f"a: {'x' * OBJECT.bytes}",
        f"# {'é' * (OBJECT.bytes // 2)}\na: b",
        f"a: &a {'x' * 1000}\nb: [{'*a, ' * 1600}]",
    ):
        with pytest.raises(ResourceError, match="1572864 bytes"):
            load(text)


def test_whatever_the_parser_raises_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> object:
        raise KeyError("x\ny")

    monkeypatch.setattr(yaml, "parse", fails)
    with pytest.raises(ResourceError, match=r"not YAML: KeyError: .*x\\+ny"):
        load("a: b")


_PLAIN: Any = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(st.lists(_PLAIN, max_size=4))
def test_what_is_written_is_read(values: list[Any]) -> None:
    text = yaml.safe_dump_all(values, explicit_start=True, default_style='"')
    assert [value for line, part in split(text) for value in load(part, line)] == [
        value for value in values if value is not None
    ]


@given(st.text(max_size=60))
def test_any_text_is_values_or_one_error(text: str) -> None:
    try:
        load(text)
    except ResourceError:
        return
