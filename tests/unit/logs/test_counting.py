"""What control hears of counts: whoever is forgotten and comes again, the sum of what was told is what was counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.counting import CountsTold, delivered, processed, tailed
from nodeagent.logs.delivery.counts import SinkCounts
from nodeagent.logs.process.processor import ProcessCounts
from nodeagent.logs.tail.interfaces import TailCounts
from nodeagent.telemetry import metrics
from nodeagent.vocabulary import PodUid

POD = ("shop", "web-0")


def added(report: dict[str, Any], sums: Counter[str]) -> None:
    for name, labels, value in report["counts"]:
        assert value > 0, (name, labels)
        sums[name] += value


@given(st.lists(st.tuples(st.sampled_from(["count", "tell", "forget"]), st.integers(1, 1000)), max_size=30))
def test_a_pod_that_is_forgotten_and_there_again_is_counted_from_nothing(steps: list[tuple[str, int]]) -> None:
    """As those of a StatefulSet, whose pods have one name after another."""
    sink = SinkCounts()
    sources = {"file/u/a": ProcessCounts()}
    told = CountsTold()
    heard: Counter[str] = Counter()
    counted = 0

    def tell() -> None:
        made = [processed(key, POD, counts) for key, counts in sources.items()]
        added(told.report([*delivered("s", sink), *made]), heard)

    for step, number in steps:
        if step == "count":
            counted += number
            sink.named(POD).offered += number
            sink.named(POD).delivered += number
            sources["file/u/a"].lines += number
        elif step == "tell":
            tell()
        else:
            tell()  # what is forgotten was told
            sink.forget(set())
            sources["file/u/a"] = ProcessCounts()
    tell()
    names = (metrics.LOG_OFFERED, metrics.LOG_DELIVERED, metrics.LOG_LINES)
    assert [heard[each.name] for each in names] == [counted] * 3


def test_what_was_read_of_a_pod_that_was_forgotten_is_counted_from_nothing() -> None:
    told = CountsTold()
    heard: Counter[str] = Counter()
    pods = {PodUid("u"): POD}
    for read in (500, 400, 450):
        added(told.report(tailed(pods, {PodUid("u"): TailCounts(bytes_read=read)})), heard)
    assert heard[metrics.LOG_BYTES.name] == 500 + 400 + 50
