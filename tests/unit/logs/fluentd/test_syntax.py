"""Fluentd's configuration format, read."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ConfigError
from nodeagent.logs.fluentd.syntax import FluentSection, parse


def read(text: str) -> FluentSection:
    return parse(text, "fluent.conf", lambda asked: {asked: f"included {asked}"})


@pytest.mark.parametrize(
    ("line", "value", "ruby"),
    [
        ("path /var/log/*.log", "/var/log/*.log", False),
        ("path /var/log/a # a comment", "/var/log/a", False),
        ("color #ff0000", "#ff0000", False),
        ('path "a \\"b\\" \\n"', 'a "b" \n', False),
        ("path \"#{ENV['X']}\" # a comment", "#{ENV['X']}", True),
        ("path '#{ENV}'", "#{ENV}", False),
        ("path '\\'a'", "'a", False),
        ("path", "", False),
        ('paths ["a", "b"]', '["a", "b"]', False),
        ("paths [a-z]+", "[a-z]+", False),
        ("expression /^(?<a>[^ ]*) (?<b>.*)$/", "/^(?<a>[^ ]*) (?<b>.*)$/", False),
        ("$.a.b value", "value", False),
    ],
)
def test_a_parameter(line: str, value: str, ruby: bool) -> None:
    (found,) = read(f"<source>\n  {line}\n</source>\n").sections[0].values.values()
    assert (found.text, found.ruby) == (value, ruby)
    assert str(found.place) == "fluent.conf:2"


def test_sections_within_one_another() -> None:
    root = read("# first\n<match app.** other>\n  @type copy\n  <store>\n    @type null\n  </store>\n</match>\r\n")
    (match,) = root.within("match")
    assert (match.argument, str(match.place)) == ("app.** other", "fluent.conf:2")
    assert [each.values["@type"].text for each in match.within("store")] == ["null"]


def test_values_over_several_lines() -> None:
    root = read('hosts [\n  "a:1", # one\n  "b:2"\n]\ntext "one\n  two"\nlast x\n')
    assert {name: value.text for name, value in root.values.items()} == {
        "hosts": '[\n"a:1",\n"b:2"\n]',
        "text": "one\n  two",
        "last": "x",
    }


def test_what_is_included_stands_in_its_place() -> None:
    root = read("<source>\n  @include part.conf\n</source>\n")
    assert root.sections[0].values["included"].text == "part.conf"
    assert str(root.sections[0].values["included"].place) == "part.conf:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<source>\n", "fluent.conf:1: <source> is not closed"),
        ("<source>\n</match>\n", "fluent.conf:2: </match> closes nothing: <source> is open"),
        ("</source>\n", "fluent.conf:1: </source> closes nothing"),
        ('a "x', "a string in double quotes is not closed"),
        ('a "x" y', "nothing but a comment may follow"),
        ("a 'x", "a string in single quotes is not closed"),
        ("<<\n", "fluent.conf:1: '<<': expected"),
        ("<a>\n" * 40, "sections and files within one another"),
        ("x" * (1 << 20) + "x", "allowed: up to"),
    ],
)
def test_what_fluentd_would_not_read_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert says in str(refused.value)


def test_a_file_that_includes_itself_ends() -> None:
    with pytest.raises(ConfigError, match="within one another"):
        parse("@include x", "x", lambda asked: {"x": "@include x"})


@given(st.text(alphabet="<>/ab@\"'\\[]{},#\n ", max_size=200))
def test_no_text_does_anything_but_being_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert read(text).name == ""
