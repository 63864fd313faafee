"""Names in messages make no records of their own."""

from __future__ import annotations

import logging

import pytest

from nodeagent import log_lines
from nodeagent.log_lines import SPARING_SECONDS, OneLine, SparingLog


def line(message: str, *arguments: object, failed: Exception | None = None) -> str:
    record = logging.LogRecord(
        "nodeagent.x", logging.WARNING, "", 0, message, arguments, (type(failed), failed, None) if failed else None
    )
    return OneLine("%(levelname)s %(message)s").format(record)


def test_a_record_is_one_line_whatever_the_names_in_it() -> None:
    assert (
        line("%s: skipped", "x\n2026-01-01 INFO nodeagent forged\x1b[2J\u2028é")
        == "WARNING x\\n2026-01-01 INFO nodeagent forged\\x1b[2J\\u2028é: skipped"
    )
    assert line("plain %d", 5) == "WARNING plain 5"
    assert line("it failed", failed=KeyError("a")).splitlines() == ["WARNING it failed", "KeyError: 'a'"]


def test_of_warnings_that_others_cause_one_of_a_kind_is_written_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = SparingLog(logging.getLogger("nodeagent.x"), lambda: now)
    for _ in range(1000):
        log.tell("a to b", "a to b: reset")
    log.tell("a to c", "a to c: refused")
    now = SPARING_SECONDS
    log.tell("a to b", "a to b: refused")
    assert caplog.messages == ["a to b: reset", "a to c: refused", "a to b: refused (and 999 more like it)"]


def test_kinds_of_warnings_are_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "MAX_KINDS", 2)
    now = 0.0
    log = SparingLog(logging.getLogger("nodeagent.x"), lambda: now)
    for kind in ("a", "b", "a", "c", "d", "a", "b") * 2:
        log.tell(kind, kind)
    assert caplog.messages == ["a", "b", "c"], "those beyond are one kind"
    now = SPARING_SECONDS
    log.tell("d", "d")
    assert caplog.messages[3:] == ["d"], "one that was long ago makes room"
