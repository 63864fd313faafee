"""What `nodeagent compare` makes of its options, and what it tells while it measures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nodeagent.cli.main import main
from nodeagent.compare.load import CompareError
from nodeagent.compare.run import ComparisonPlan, Progress, Results
from nodeagent.compare.scale import Scale

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


@pytest.mark.parametrize("ratios", [{"x": 1.0}, {"x": {}}, {"x": {"value": "1"}}, {"x": {"value": True}}])
def test_an_earlier_run_is_read_before_anything_is_measured(
    ratios: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run", pytest.fail)
    (tmp_path / "before.json").write_text(json.dumps({"ratios": ratios}))
    with pytest.raises(SystemExit):
        main(["compare", "--quick", "--against", str(tmp_path / "before.json")])
    assert "ratios.x.value is no number" in capsys.readouterr().err


def test_what_goes_wrong_at_the_end_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of whatever kind is a note; a file that cannot be written comes after the table."""

    def broken(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
        results.scale.append(Scale("nodeagent", 2, 5_000_000, 0.1, 1.0))
        results.scale.append(Scale("envoy", 2, 0, 0.1, 1.0))
        place.unlink()  # what could be written before the measurement
        place.mkdir()
        raise OSError(28, "No space left on device")

    place = tmp_path / "folder" / "out.json"
    monkeypatch.setattr(command, "run", broken)
    with pytest.raises(SystemExit):
        main(["compare", "--quick", "--output", str(place)])
    told = capsys.readouterr()
    assert "pods that do nothing" in told.out
    assert "No space left on device" in told.out
    assert "the results cannot be written" in told.err
