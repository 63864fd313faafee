"""What `nodeagent compare` makes of its options, and what it tells while it measures."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from nodeagent.cli.main import main
from nodeagent.compare.load import CompareError
from nodeagent.compare.run import ComparisonPlan, Progress, Results

command = importlib.import_module("nodeagent.cli.compare")


def test_how_long_a_mode_may_take_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[ComparisonPlan] = []

    def noted(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
        plans.append(plan)
        raise CompareError("nothing is measured here")

    monkeypatch.setattr(command, "run", noted)
    for options in ([], ["--wait", "600"]):
        with pytest.raises(SystemExit):
            main(["compare", "--quick", *options])
    assert [plan.wait for plan in plans] == [90, 600]


def test_where_nothing_is_drawn_a_line_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Input: a step each 4 s. Verdict: each third of them."""
    now = 0.0

    def steps(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
        nonlocal now
        for number in range(1, 8):
            now += 4
            progress(f"step {number}", number, 8)

    monkeypatch.setattr(command, "run", steps)
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(SystemExit):
        main(["compare", "--quick"])
    told = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert told == ["12 s: step 3", "24 s: step 6"]
