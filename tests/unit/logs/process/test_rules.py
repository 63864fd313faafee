"""Rules: in their order, on every spelling of a member, and never a line less for one that is odd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ConfigError
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.objects import LogObjects
from nodeagent.logs.process.parsers import AUTO, TextParser, parser
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.processor import WITHHELD, ProcessCounts, Recipe
from nodeagent.logs.process.quoted import QuotedMember
from nodeagent.logs.process.rules import DropRule, RedactRule, Rule
from nodeagent.logs.process.times import TimeKey
from tests.unit.logs.process.strict import strict
from tests.unit.logs.process.test_processor import processed

PASSWORD = RedactRule(LinePattern(".+"), "***", RecordMember("password"))


def plain(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


# -- patterns that find nothing --


@pytest.mark.parametrize(
    ("pattern", "text", "left"),
    [
        (r"(password=\S+)?", "注文 password=x", "注文 ***"),
        (r"(password=\S+)?", "no secret", "no secret"),
        ("x*", "é注x文xx", "é注***文***"),
        (r"\B", "注文", "注文"),
        (".*", "s3cret", "***"),
        (r"\A(a|)", "abc", "***bc"),
    ],
)
def test_nothing_that_is_found_is_not_replaced(pattern: str, text: str, left: str) -> None:
    rules = (RedactRule(LinePattern(pattern), "***"),)
    found = processed(plain([text.encode()] * 2), Recipe("plain", rules=rules))
    assert found.texts == [left.encode()] * 2
    member = RedactRule(LinePattern(pattern), "***", RecordMember("a"))
    [made] = processed(plain([b'{"a":"' + text.encode() + b'"}']), Recipe("plain", rules=(member,))).objects
    assert strict(made) == {"a": left}


ODD = [LinePattern(each) for each in (r"x*", r"\B", r"(é|)", r"\b", r"[^x]*", r"(?s:.)?x", r"\s*", r"$")]


@given(
    st.lists(st.text("xé注 ", max_size=6), min_size=1, max_size=4), st.sampled_from(ODD), st.sampled_from(["", "\n"])
)
def test_what_is_redacted_stays_text(texts: list[str], pattern: LinePattern, replacement: str) -> None:
    encoded = [each.encode() for each in texts]
    found = pattern.replace(encoded, replacement.encode()) or encoded
    assert len(found) == len(texts)
    assert all(each.decode() is not None for each in found)
    assert found == [pattern.replaced_in(each, replacement.encode()) for each in encoded]


@given(
    st.text("xaé注\n 1.", max_size=12), st.sampled_from([*ODD, *map(LinePattern, (r"(|x)a?", r"(?i)\d*\.?\d*", "a|$"))])
)
def test_what_may_be_nothing_is_found_as_one_search_after_the_other_finds_it(text: str, pattern: LinePattern) -> None:
    found = re2.compile(pattern.text.encode()).finditer(text.encode())
    spans = [(each.start(), each.end()) for each in found if each.start() < each.end()]
    left = bytearray(text.encode())
    for begin, end in reversed(spans):
        left[begin:end] = b"*"
    assert pattern.replaced_in(text.encode(), b"*") == left


@pytest.mark.parametrize("pattern", [r"(password=\S+)?", "x*", r"\b(secret)?", r"\QEND\E*", r"(?i)\d*\.?\d*$"])
def test_a_pattern_that_may_find_nothing_is_not_asked_for_each_byte(pattern: str) -> None:
    class Counted:
        def __init__(self, compiled: Any) -> None:
            self.compiled = compiled
            self.found = 0

        def finditer(self, text: bytes) -> Iterator[Any]:
            for match in self.compiled.finditer(text):
                self.found += 1
                yield match

        def __getattr__(self, name: str) -> Any:
            return getattr(self.compiled, name)

    made = LinePattern(pattern)
    counted = [Counted(made._one), Counted(made._by_line)]
    made._one, made._by_line = cast("Any", counted)
    texts = [b"a line without any such thing, but long"] * 50
    assert (made.replace(texts, b"***") or texts) == texts
    assert sum(each.found for each in counted) <= 2 * len(texts)


@pytest.mark.parametrize(
    ("pattern", "taken"), [(r"a\C", False), (r"\\C", True), (r"\Q\C\Ea", True), (r"\Qa\E\C", False)]
)
def test_a_byte_of_a_character_is_no_pattern(pattern: str, taken: bool) -> None:
    if taken:
        assert LinePattern(pattern).text == pattern
    else:
        with pytest.raises(ConfigError, match=r"\\C is a byte"):
            LinePattern(pattern)


# -- lines on which something fails --


@dataclass(frozen=True, slots=True)
class _Fails:
    """A parser with a bug."""

    time: TimeKey | None = None
    counts_failures: bool = False

    def objects(self, make: LogObjects, texts: list[bytes]) -> tuple[list[bytes], Sequence[int]]:
        if any(b"poison" in text for text in texts):
            raise OverflowError("a bug")
        return AUTO.objects(make, texts)


@pytest.mark.parametrize(("rules", "left"), [((), b"poison"), ((PASSWORD,), WITHHELD)])
def test_a_line_that_cannot_be_processed_is_kept_as_text_and_stops_no_other(
    rules: tuple[Rule, ...], left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    counts = ProcessCounts()
    drop = DropRule(LinePattern("health"))
    data = plain([b'{"a":1}', b"health", b"", b"poison", b"text", b"poison health"])
    found = processed(data, Recipe("plain", _Fails(), rules=(drop, *rules)), counts)
    assert found.texts == [b'{"a":1}', left, b"text"]
    assert [strict(each) for each in found.objects] == [{"a": 1}, {"log": left.decode()}, {"log": "text"}]
    assert (counts.lines, counts.records, counts.unparsed) == (6, 3, 1)
    assert counts.dropped == {"rule": 2, "empty": 1}
    assert sum("cannot be processed" in each.message for each in caplog.records) == 1


# -- in their order --


def alone(text: bytes, rules: Sequence[Rule], chosen: TextParser) -> bytes | None:
    """What *rules*, one after the other, leave of one line; None: nothing."""
    for rule in rules:
        found = processed(text + b"\n", Recipe("plain", chosen, rules=(rule,))).texts
        if not found:
            return None
        [text] = found
    return text


PARTS = ["alice", "bob", '{"a":"alice"}', '{"a":"bob","b":"x"}', '{"a":1', ' "a":"alice"', "{}", "a=alice b=x"]
PATTERNS = [LinePattern(each) for each in ("alice", "bob", "^x$", "HIDDEN", r'"a":', "1")]
MEMBERS = [None, RecordMember("a"), RecordMember("b"), RecordMember("log")]
RULES = st.lists(
    st.builds(DropRule, st.sampled_from(PATTERNS), st.sampled_from(MEMBERS))
    | st.builds(
        RedactRule, st.sampled_from(PATTERNS), st.sampled_from(["HIDDEN", "bob", '"c":']), st.sampled_from(MEMBERS)
    ),
    max_size=4,
)


@given(st.lists(st.sampled_from(PARTS).map(str.encode), min_size=1, max_size=4), RULES)
def test_rules_are_applied_in_their_order(lines: list[bytes], rules: list[Rule]) -> None:
    each = [alone(line, rules, AUTO) for line in lines]
    counts = ProcessCounts()
    found = processed(plain(lines), Recipe("plain", rules=tuple(rules)), counts)
    assert found.texts == [text for text in each if text is not None]
    assert counts.dropped.total() == each.count(None)
    for made, text in zip(found.objects, found.texts, strict=True):
        assert strict(made) == strict(processed(text + b"\n", Recipe("plain")).objects[0])


def test_what_is_redacted_before_is_what_a_rule_sees() -> None:
    alice, hidden = LinePattern("alice"), LinePattern("HIDDEN")
    recipe = Recipe("plain", rules=(RedactRule(alice, "HIDDEN"), DropRule(hidden)))
    assert processed(b"alice\nbob\n", recipe).texts == [b"bob"]
    recipe = Recipe("plain", rules=(RedactRule(alice, "bob"), DropRule(alice)))
    assert processed(b"alice\n", recipe).texts == [b"bob"]
    recipe = Recipe("plain", parser("logfmt"), rules=(RedactRule(alice, "bob", RecordMember("user")), DropRule(alice)))
    assert processed(b"user=alice\nfrom=alice\n", recipe).texts == [b'{"user":"bob"}']


# -- members of what is no object --

DEEP = '{"a":' * 1100
BROKEN = [
    r'{"password":"s3cret","m":"\ud83d"}',
    r'{"password":"s3cret\ud83d"}',
    r'{"pass\u0077ord":"s3cret","m":NaN}',
    '{"password":"s3cret","x":NaN}',
    '{"x":Infinity,"password" : "s3cret"}',
    '2026 INFO {"password":"s3cret"}',
    '{"password":"s3cret"} and more',
    '{"password":"s3cret","password":"s3cret"',
    '{"password":"s3cret',
    '{"password":"s3cret\\',
    '{"password":["s3cret",{"x":"s3cret"}],"n":NaN}',
    '{"password":{"x":["s3cret"',
    r'{"password":"\x s3cret","y":1}',
    '{"password":s3cret}',
    '{\'a\':1,"password":"s3cret"}',
    f'{DEEP}{{"password":"s3cret"}}{"}" * 1100}',
    f'{{"x":{DEEP}1{"}" * 1100},"password":"s3cret"}}',
    '[{"password":"s3cret"}]',
]


@pytest.mark.parametrize("chosen", [parser("auto"), parser("json"), parser("none")])
@pytest.mark.parametrize("line", BROKEN)
def test_a_member_is_redacted_though_its_line_is_no_object(line: str, chosen: TextParser) -> None:
    counts = ProcessCounts()
    others = [b'{"password":1}', b"text", b'{"name":"alice"}']
    found = processed(plain([*others, line.encode()]), Recipe("plain", chosen, rules=(PASSWORD,)), counts)
    assert b"s3cret" not in found.texts[3] and b"s3cret" not in found.objects[3]
    assert "***" in strict(found.objects[3])["log"]
    assert counts.unparsed > 0
    assert found.texts[1:3] == others[1:]


@pytest.mark.parametrize(
    ("path", "line", "left"),
    [
        ("password", '{"password":"public"} x', '{"password":"public"} x'),
        ("password", 'x {"password":"SECRET","y":2}', 'x {"password":"-","y":2}'),
        ("password", '{"passwords":"SECRET"} x', '{"passwords":"SECRET"} x'),
        ("password", 'says "password" SECRET', 'says "password" SECRET'),
        ("a.b", '{"a":{"b":"SECRET"}} x', '{"a":{"b":"-"}} x'),
        ("a.b", '{"a.b":"SECRET"} x', '{"a.b":"-"} x'),
        ("a.b", '{"c":{"b":"SECRET"}} x', '{"c":{"b":"SECRET"}} x'),
        ("a/b", r'{"a\/b":"SECRET"} x', r'{"a\/b":"-"} x'),
        ("é😀", r'{"\u00E9\ud83d\uDE00":"S\u0045CRET"} x', r'{"\u00E9\ud83d\uDE00":"-"} x'),
        ("log", "a SECRET text", "a - text"),
    ],
)
def test_nothing_else_of_such_a_line_is_changed(path: str, line: str, left: str) -> None:
    rule = RedactRule(LinePattern("SECRET"), "-", RecordMember(path))
    found = processed(plain([line.encode()]), Recipe("plain", rules=(rule,)))
    assert found.texts == [left.encode()]
    assert [strict(each) for each in found.objects] == [{"log": left}]


@given(
    st.lists(st.sampled_from(['"password"', ":", '"', "{", "}", "[", "]", "\\", "s3", " ", ",", "1", "é"]), max_size=20)
)
def test_any_text_stays_one(parts: list[str]) -> None:
    text = "".join(parts)
    made = QuotedMember(["password"]).redacted(text.encode(), lambda value: value.replace("s3", "*"), "*").decode()
    if '"password"' not in text:
        assert made == text


@pytest.mark.parametrize("piece", ['"password":[', '"password":{"x":', '"password":"', '"password":', '"password"'])
def test_a_line_of_such_names_takes_linear_time(piece: str) -> None:
    seen: list[int] = []
    text = piece * (60_000 // len(piece))

    def replace(value: str) -> str:
        seen.append(len(value))
        return value

    QuotedMember(["password"]).redacted(text.encode(), replace, "*")
    assert sum(seen) <= len(text)
