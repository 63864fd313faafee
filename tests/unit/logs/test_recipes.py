"""From agent.yaml to how lines are made into records: rules go by the names that an application writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.process.journal import journal
from nodeagent.logs.process.processor import ProcessCounts, Processor
from nodeagent.logs.recipes import Recipes
from nodeagent.logs.records import Chunk
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.vocabulary import PodUid
from tests.unit.logs.made_records import origin

FACTS = SourceFacts("file/u/v/a", "file", PodUid("u"), "shop", "web", "", "v/a", reading=Reading(sinks=("all",)))


@pytest.mark.parametrize("member", ["stream", "@timestamp", "kubernetes.token", "log_file"])
def test_a_rule_finds_a_member_by_the_name_that_the_application_gives_it(member: str) -> None:
    rules = [{"redact": {"matches": "SECRET", "field": member}}]
    settings = LogSettings.model_validate({"sinks": [{"name": "all", "stdout": {}}], "rules": rules})
    name, _, inner = member.partition(".")
    line = json.dumps({name: {inner: "SECRET"} if inner else "SECRET"}).encode()
    made = Processor(origin("web"), Recipes(settings).recipe(FACTS, "plain"), ProcessCounts())
    found = made.feed(Chunk(b"f00d", 0, line + b"\n", True), 1767225600.0)
    assert b"SECRET" not in found.objects[0]
    assert b"SECRET" not in found.texts[0]


def field(name: str, value: bytes) -> bytes:
    """Return a field as the journal's export format has it (systemd's ``output_export``)."""
    if b"\n" not in value and value.isascii():
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def entry(message: bytes, **more: bytes) -> bytes:
    fields = {"__CURSOR": b"s=1;i=2", "__REALTIME_TIMESTAMP": b"1767225600123456", **more, "MESSAGE": message}
    return b"".join(field(name, value) for name, value in {**fields, "PRIORITY": b"6"}.items()) + b"\n"


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_entries_of_the_journal_are_records_with_their_time(pieces: int) -> None:
    messages = [
        b"hello", b"a=b", b"two\nlines", b"\nX=1\n\n", b"long\n" * 100, b"\xff\n\xfe", "\u00e9\n".encode() * 60,
        b"x\n" * 5, b"", b"__CURSOR",
    ]  # fmt: skip
    sinks = {"sinks": [{"name": "all", "stdout": {}}]}
    settings = LogSettings.model_validate({**sinks, "node": {"files": [{"path": "/j", "parser": "journal"}]}})
    facts = replace(FACTS, reading=Reading(parser="journal", sinks=("all",)))
    counts = ProcessCounts()
    made = Processor(origin("web"), Recipes(settings).recipe(facts, "plain"), counts)
    lines = b"".join(entry(each, A=b"1\n2") for each in messages).splitlines(keepends=True)
    found: list[bytes] = []
    times: list[bytes] = []
    at = 0
    for first in range(0, len(lines), pieces):
        data = b"".join(lines[first : first + pieces])
        records = made.feed(Chunk(b"f00d", at, data, True), 1767225700.0)
        at += len(data)
        found += records.objects
        times += records.times
    if (last := made.flush(1767225800.0, final=True)) is not None:
        found += last.objects
        times += last.times
    read = [json.loads(each) for each in found]
    assert [each["MESSAGE"] for each in read] == [each.decode("utf-8", "replace") for each in messages]
    assert all(each["PRIORITY"] == "6" and each["A"] == "1\n2" for each in read)
    assert times == [b"2026-01-01T00:00:00.123456Z"] * len(messages)
    assert not counts.unparsed


@pytest.mark.parametrize("end", [b"", b"x\n", b"x\n\n"])
def test_blank_lines_in_an_entry_of_the_journal_cost_no_more_than_others(end: bytes) -> None:
    """A million: were each run looked through from each of its lines, this would not come to an end."""
    blank = b"\n" * 1_000_000
    unknown = b"A\n" + "\ufffd".encode() + b"\0" * 7
    found = journal(b"__CURSOR=a\n" + unknown + blank + end)
    assert found is not None and len(found["A"].strip()) == (1 if end else 0)


@given(st.binary(max_size=300))
def test_no_text_keeps_the_journal_s_parser(text: bytes) -> None:
    found = journal(text)
    assert found is None or all(found)
