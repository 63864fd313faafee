"""Names in messages make no records of their own."""

from __future__ import annotations

import logging

from nodeagent.log_lines import OneLine


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
