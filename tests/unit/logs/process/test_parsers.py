"""Texts read as members, and patterns over many lines at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ConfigError
from nodeagent.logs.process.members import MAX_DEPTH, RecordMember
from nodeagent.logs.process.objects import LogObjects
from nodeagent.logs.process.parsers import logfmt, parser
from nodeagent.logs.process.patterns import LinePattern
from tests.unit.logs.process.strict import strict

MAKE = LogObjects(("kubernetes",))


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("level=info msg=ok", {"level": "info", "msg": "ok"}),
        ('msg="two words" n=1', {"msg": "two words", "n": "1"}),
        (r'msg="a \"quoted\" \\ line\nnext" x=', {"msg": 'a "quoted" \\ line\nnext', "x": ""}),
        ("flag level=warn", {"flag": "true", "level": "warn"}),
        ('msg="no end level=info', {"msg": "no end level=info"}),
        ('msg="ends with \\', {"msg": "ends with "}),
        ("a=1 a=2", {"a": "2"}),
        ("url=http://x/?a=b&c=d", {"url": "http://x/?a=b&c=d"}),
        ("only words", None),
        ("", None),
        ("=", None),
        ('"="', None),
    ],
)
def test_logfmt(text: str, members: dict[str, str] | None) -> None:
    assert logfmt(text.encode()) == members


def test_what_logfmt_cannot_read_is_text() -> None:
    objects, others = parser("logfmt").objects(MAKE, [b"level=info stream=x", b"words"])
    assert [strict(made) for made in objects] == [{"level": "info", "app_stream": "x"}, {"log": "words"}]
    assert others == [1]


def test_a_regex_makes_members_of_its_named_groups() -> None:
    found = parser("regex", r"^(?P<ip>[\d.]+) (?P<user>\w+)?- (\d+)$")
    objects, others = found.objects(MAKE, [b"10.0.0.1 bob- 200", b"10.0.0.1 - 200", b"10.0.0.1 bob- x"])
    assert [strict(made) for made in objects] == [
        {"ip": "10.0.0.1", "user": "bob"},
        {"ip": "10.0.0.1"},
        {"log": "10.0.0.1 bob- x"},
    ]
    assert others == [2]


@pytest.mark.parametrize(
    ("pattern", "said"), [(r"(?P<a>.)\1", "back-references"), ("(", "RE2"), ("abc", "no named group")]
)
def test_a_regex_that_cannot_be_used_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parser("regex", pattern)


@pytest.mark.parametrize("path", ["", ".".join("a" * (MAX_DEPTH + 1))])
def test_a_members_path_that_cannot_be_used_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="a member's path"):
        RecordMember(path)


def test_a_member_is_found_wherever_it_is() -> None:
    objects = [b'{"a":{"b":"x"}}', b'{"a.b":1}', b'{"a":1}', b'{"a":{"c":2}}', b'{"a":{"b":{"d":null}}}', b'{"b":1}']
    assert RecordMember("a.b").values(objects) == {0: "x", 1: "1", 4: '{"d":null}'}
    assert RecordMember("a").values(objects) == {0: '{"b":"x"}', 2: "1", 3: '{"c":2}', 4: '{"b":{"d":null}}'}
    redacted = RecordMember("a.b").redacted(objects, lambda _: "-")
    assert {at: strict(made) for at, made in redacted.items()} == {
        0: {"a": {"b": "-"}},
        1: {"a.b": "-"},
        4: {"a": {"b": "-"}},
    }


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("card", '{"card":"SECRET","card":"x"}'),
        ("card", '{"card":"x","card":"SECRET"}'),
        ("card", '{"card":"SECRET","n":1.50,"\\u0063ard":"x"}'),
        ("user.card", '{"user.card":"SECRET","user":{"card":"SECRET"}}'),
        ("user.card", '{"user":{"card":"SECRET","card":"x"}}'),
        ("user.card", '{"user":{"card":"SECRET"},"user":{"card":"x"}}'),
        ("user.card", '{"user":"x","user.card":"SECRET"}'),
        ("a.b.c", '{"a.b":{"c":"SECRET"},"a":{"b.c":"SECRET","b":{"c":"SECRET"}},"a.b.c":"SECRET"}'),
        ("a/b", '{"a\\/b":"SECRET","a/b":"x"}'),
    ],
)
def test_no_spelling_of_a_member_passes_what_is_redacted(path: str, line: str) -> None:
    other = line.replace("SECRET", "public").encode()
    made = RecordMember(path).redacted([b'{"a":1}', line.encode(), other], lambda value: value.replace("SECRET", "-"))
    assert 0 not in made
    assert b"SECRET" not in made[1]
    assert strict(made[1])
    assert b'"n":1.50' in made[1] or "1.50" not in line
    assert b"public" in made.get(2, other) or "x" in line, "nothing else is changed"


PATTERNS = [LinePattern(text) for text in (r"^a", r"b$", r"a\s*b", r"[^x]+", r"\Aa", r"b\z", r"^$", r"(a|b)+c?", r"x*")]


@given(st.lists(st.text("abcx \n", max_size=5).map(str.encode), max_size=6), st.sampled_from(PATTERNS))
def test_many_lines_are_searched_as_each_would_be(texts: list[bytes], pattern: LinePattern) -> None:
    assert pattern.lines_with(texts) == [at for at, text in enumerate(texts) if pattern.found_in(text)]
    each = [pattern.replaced_in(text, b"<\\1>") for text in texts]
    assert (pattern.replace(texts, b"<\\1>") or texts) == each
