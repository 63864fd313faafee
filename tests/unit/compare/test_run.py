"""What becomes of a mode when a lab beside its own does not come up."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.compare import labs, run
from nodeagent.compare.labs import LabNeeds, Setup
from nodeagent.compare.load import CompareError, Sample, UnansweredError
from nodeagent.compare.run import Cell, ComparisonPlan, Results


class Measured:
    """A mode that is up, whose work is not what it says."""

    name, variant, workloads, logs = "envoy", "", ("http",), ()

    def describe(self) -> str:
        return self.name

    def start(self) -> None:
        pass

    def memory(self, workload: str) -> int:
        return 123

    def verify(self, answered: object) -> tuple[list[str], list[str]]:
        return ["a check"], ["the policy is not enforced"]


def test_a_variant_that_is_lost_takes_nothing_of_its_mode_away(monkeypatch: pytest.MonkeyPatch) -> None:
    mode: Any = Measured()

    def lost(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Any]:
        raise CompareError("its lab did not come up")

    setups = (
        Setup("compare-envoy", ("envoy",), lambda name, wanted, modes: [mode]),
        Setup("compare-envoy-one", ("envoy",), lost, variant=True),
    )
    monkeypatch.setattr(labs, "SETUPS", setups)
    monkeypatch.setattr(labs.Lab, "remove", lambda _: None)
    results = Results()
    made = labs.bring_up(("envoy",), LabNeeds(("http",), True), results.missing, lambda _: None)
    run._account(made, results)
    assert [each["what"] for each in results.missing] == ["envoy, a variant (compare-envoy-one)"]
    assert results.memory == {(mode, "http"): 123}
    assert results.notes == ["envoy: the policy is not enforced"]


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_it_is_asked_until_something_is_answered(silent: int) -> None:
    asked: list[int] = []

    def measure(seconds: int) -> Sample:
        asked.append(seconds)
        if len(asked) <= silent:
            raise UnansweredError("no request was answered well")
        return Sample(7, seconds, 0)

    assert run.until_answered(measure, (1, 5, 25)).requests == 7
    assert asked == [1, 5, 25][: silent + 1]


def test_asking_ends_with_who_never_answers_and_at_once_with_another_fault() -> None:
    asked: list[int] = []

    def measure(error: CompareError) -> Sample:
        asked.append(1)
        raise error

    for error, attempts in ((UnansweredError("nothing"), 3), (CompareError("wrk: not found"), 1)):
        asked.clear()
        with pytest.raises(CompareError, match=str(error)):
            run.until_answered(lambda _, error=error: measure(error), (1, 5, 25))
        assert len(asked) == attempts


def test_a_round_in_which_nothing_is_answered_goes_on_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a mode that answers nothing in the first seconds of its round. Verdict: it is measured, and not lost."""
    mode: Any = Measured()
    asked: list[int] = []

    def measure(_: Cell, seconds: int) -> Sample:
        asked.append(seconds)
        if seconds == 4:
            raise UnansweredError("no request was answered well")
        return Sample(7, seconds, 0)

    monkeypatch.setattr(Cell, "measure", measure)
    monkeypatch.setattr(run, "all_cells", lambda *_: [Cell(mode, "http", 32)])
    results = Results()
    plan = ComparisonPlan(("envoy",), ("http",), rounds=1, seconds=4)
    assert run._rounds(plan, [mode], results, lambda *_: None) == set()
    assert results.missing == []
    assert asked == [1, 4, 20]
    assert [sample.seconds for sample in results.samples[Cell(mode, "http", 32)]] == [20]
