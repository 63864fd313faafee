"""YAML from others: what it means, and what cannot hurt."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.resources.yaml_text import load, split


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
        ("true: 1", "line 1: the key True is not text"),
        ("a: *b", "line 1: alias 'b' without an anchor"),
        ("a: &a [*a]", "alias 'a' without an anchor"),
        ("a: &b {x: 1}\nc:\n  <<: *b", "line 3: merge keys"),
        ("a: ]", "line 1"),
        ("\x00", "not YAML"),
        ("a: !!int x", "not YAML"),
        ("a: !!python/name:os.system x", "not YAML"),
        ("[" * 200_000, "nested deeper than 64"),
        ("{a: " * 200_000, "nested deeper than 64"),
        ("- " * 200_000, "nested deeper than 64"),
        ("a0: &a0 [" + "x, " * 10 + "]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 12)), "more than 200000 values"),
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
    assert [value for line, part in parts[:2] for value in load(part, line)] == list(yaml.safe_load_all("".join(part for _, part in parts[:2])))
    with pytest.raises(ResourceError, match="line 7"):
        load("a: ]", 6)


_PLAIN: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)),
    max_leaves=20,
)


@given(st.lists(_PLAIN, max_size=4))
def test_what_is_written_is_read(values: list[Any]) -> None:
    text = yaml.safe_dump_all(values, explicit_start=True)
    assert [value for line, part in split(text) for value in load(part, line)] == [value for value in values if value is not None]


@given(st.text(max_size=60))
def test_any_text_is_values_or_one_error(text: str) -> None:
    try:
        load(text)
    except ResourceError:
        return
