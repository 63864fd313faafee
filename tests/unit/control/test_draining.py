"""What a daemon that was succeeded says of what is still open."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from nodeagent.control import draining
from nodeagent.control.draining import NAMED, NOTE, drains_beside, noted, still_open, tell_what_is_open
from nodeagent.control.flows import FlowRow
from nodeagent.mesh.entries import Entry
from nodeagent.messages import AskFlows, AskMetrics
from tests.unit.mesh.test_compile import mesh, pod
from tests.waiting import until

KNOWN: dict[str, Entry] = {entry.key: entry for entry in mesh(pod("web-1")).entries().upserts}


def row(uid: str, opened: float, closed: float | None = None) -> FlowRow:
    return {"pod": uid, "opened": opened, "closed": closed}


def test_it_names_the_pods_with_the_most_and_since_when() -> None:
    rows = [row("uid-gone", 940.0), row("uid-web-1", 400.0), row("uid-web-1", 990.0), row("uid-web-1", 1.0, 2.0)]
    assert still_open(rows, KNOWN, 1000.0) == "default/web-1 2 (for 600 s), pod uid-gone 1 (for 60 s)"
    assert still_open([row("uid-web-1", 1.0, 2.0)], KNOWN, 1000.0) == ""


def test_a_line_is_bounded_and_counts_all() -> None:
    words = still_open([row(f"uid-{at:02d}", 0.0) for at in range(NAMED + 5)], {}, 1.0)
    assert words.count("pod uid-") == NAMED
    assert words.endswith(", 5 more pods 5")


def test_it_is_said_at_once_with_the_time_that_it_may_take(caplog: pytest.LogCaptureFixture) -> None:
    class Workers:
        async def ask(self, question: type[AskFlows] | type[AskMetrics]) -> list[FlowRow]:
            assert question is AskFlows
            return [row("uid-web-1", 0.0)]

    told: list[str] = []

    async def main() -> None:
        telling = asyncio.ensure_future(tell_what_is_open(Workers(), lambda: KNOWN, 3600.0, told.append))
        await until(lambda: "default/web-1 1 (for " in caplog.text)
        telling.cancel()

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    assert "UTC: default/web-1" in caplog.text
    assert "UTC: default/web-1" in told[0]


def test_workers_that_were_too_busy_to_answer_are_asked_again_soon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "AGAIN_SECONDS", 0.0)

    class Workers:
        def __init__(self) -> None:
            self.answers: list[list[FlowRow]] = [[], [], [row("uid-web-1", 0.0)]]

        async def ask(self, question: type[AskFlows] | type[AskMetrics]) -> list[FlowRow]:
            assert question is AskFlows
            return self.answers.pop(0)

    told: list[str] = []

    async def main() -> None:
        telling = asyncio.ensure_future(tell_what_is_open(Workers(), lambda: KNOWN, 3600.0, told.append))
        await until(lambda: "default/web-1 1 (for " in caplog.text)
        telling.cancel()

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    assert len(caplog.records) == 1
    assert len(told) == 3


def test_a_successor_reads_what_is_noted_and_nothing_when_that_has_ended(tmp_path: Path) -> None:
    with noted(tmp_path) as note, noted(tmp_path) as another:
        another("until then")
        note("a long list of pods")
        note("one pod")
        found = drains_beside(tmp_path)
    assert sorted(found) == [
        f"an earlier daemon is there beside this one {words}" for words in ("one pod", "until then")
    ]
    assert drains_beside(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_who_was_killed_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / f"{NOTE}of-the-dead").write_text("for ever")
    assert drains_beside(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_what_is_no_note_is_left_alone(tmp_path: Path) -> None:
    """Input: links and pipes, of which one could wait for ever, and no folder at all."""
    (tmp_path / "other").write_text("kept")
    (tmp_path / f"{NOTE}link").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / f"{NOTE}pipe")
    assert drains_beside(tmp_path) == []
    assert (tmp_path / "other").read_text() == "kept"
    assert drains_beside(tmp_path / "none") == []


def test_a_daemon_drains_though_nothing_can_be_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with noted(tmp_path / "none") as note:
        note("words")
    assert "cannot be told of the drain" in caplog.text
