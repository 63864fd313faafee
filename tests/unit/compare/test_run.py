"""What becomes of a mode when a lab beside its own does not come up."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.compare import labs, run
from nodeagent.compare.labs import LabNeeds, Setup
from nodeagent.compare.load import CompareError, Sample, UnansweredError
from nodeagent.compare.run import Results


class Measured:
    """A mode that is up, whose work is not what it says."""

    name, variant, workloads = "envoy", "", ("http",)

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
def test_a_warm_up_lasts_until_something_is_answered(silent: int) -> None:
    asked: list[int] = []

    def measure(seconds: int) -> Sample:
        asked.append(seconds)
        if len(asked) <= silent:
            raise UnansweredError("no request was answered well")
        return Sample(7, seconds, 0)

    assert run.warm_up(measure).requests == 7
    assert len(asked) == silent + 1
    assert asked == sorted(set(asked)), "each attempt has more time than the one before"


def test_a_warm_up_ends_with_who_never_answers_and_at_once_with_another_fault() -> None:
    asked: list[int] = []

    def measure(error: CompareError) -> Sample:
        asked.append(1)
        raise error

    for error, attempts in ((UnansweredError("nothing"), 3), (CompareError("wrk: not found"), 1)):
        asked.clear()
        with pytest.raises(CompareError, match=str(error)):
            run.warm_up(lambda _, error=error: measure(error))
        assert len(asked) == attempts
