"""The logs' metrics: counted while their pods are there, and for a while after; a wrong report counts for nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.control.log_metrics import KEPT_SECONDS, LogMetrics
from nodeagent.telemetry import metrics
from nodeagent.telemetry.store import Store

POD = ("shop", "cart")


def test_counts_add_up_and_end_some_time_after_their_pod() -> None:
    now = [0.0]
    store = Store()
    made = LogMetrics(store, clock=lambda: now[0])
    made.follow([POD])
    for _ in range(2):
        made.count({"counts": [[metrics.LOG_LINES.name, list(POD), 3], [metrics.LOG_DELIVERED.name, ["s", *POD], 2]]})
    assert store.value(metrics.LOG_LINES, POD) == 6
    assert store.value(metrics.LOG_DELIVERED, ("s", *POD)) == 4
    made.follow([])
    now[0] += KEPT_SECONDS - 1
    made.follow([])
    assert store.value(metrics.LOG_LINES, POD) == 6
    now[0] += 1
    made.follow([])
    assert store.value(metrics.LOG_LINES, POD) == 0
    assert store.value(metrics.LOG_DELIVERED, ("s", *POD)) == 0


OFFERED, DELIVERED, LINES = (each.name for each in (metrics.LOG_OFFERED, metrics.LOG_DELIVERED, metrics.LOG_LINES))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["comes", "goes", "dies"]),
            st.tuples(st.sampled_from(["offered", "settled"]), st.integers(1, 9)),
            st.floats(0, 2 * KEPT_SECONDS),
        ),
        max_size=40,
    )
)
def test_what_is_offered_and_settled_adds_up_however_long_a_sink_is_down(steps: list[Any]) -> None:
    """offered == delivered + returned + waiting in every scrape, and nothing is told for ever."""
    now = [0.0]
    store = Store()
    made = LogMetrics(store, clock=lambda: now[0])
    labels = ["s", *POD]
    waiting = 0

    def value(metric: metrics.Metric) -> float:
        return store.value(metric, tuple(labels))

    there: list[tuple[str, str]] = []
    for step in steps:
        if isinstance(step, float):
            now[0] += step
        elif step in ("comes", "goes"):
            there = [POD] if step == "comes" else []
        elif step == "dies":
            made.ended()
            waiting = 0
        else:
            what, number = step
            number = number if what == "offered" else min(number, waiting)
            waiting += number if what == "offered" else -number
            if number:
                made.count({"counts": [[OFFERED if what == "offered" else DELIVERED, labels, number]]})
        made.follow(there)
        settled = value(metrics.LOG_DELIVERED) + value(metrics.LOG_RETURNED)
        assert value(metrics.LOG_OFFERED) == settled + waiting
    if waiting:
        made.count({"counts": [[DELIVERED, labels, waiting]]})
    made.count({"counts": [[LINES, list(POD), 1]]})
    for _ in range(2):
        made.follow([])
        now[0] += KEPT_SECONDS
    made.follow([])
    for metric in (metrics.LOG_OFFERED, metrics.LOG_DELIVERED, metrics.LOG_RETURNED):
        assert value(metric) == 0
    assert store.value(metrics.LOG_LINES, POD) == 0


def test_a_pod_that_is_back_keeps_its_counts() -> None:
    now = [0.0]
    store = Store()
    made = LogMetrics(store, clock=lambda: now[0])
    made.follow([POD])
    made.count({"counts": [[metrics.LOG_LINES.name, list(POD), 3]]})
    made.follow([])
    made.follow([POD])
    now[0] += KEPT_SECONDS
    made.follow([POD])
    assert store.value(metrics.LOG_LINES, POD) == 3


def test_a_wrong_report_counts_for_nothing() -> None:
    store = Store()
    made = LogMetrics(store)
    for wrong in (
        {"counts": 1},
        {"counts": [1]},
        {"counts": [["x", [], 1]]},
        {"counts": [[metrics.LOG_LINES.name, ["a"], 1]]},
    ):
        made.count(wrong)
    assert store.value(metrics.REJECTED, ("malformed",)) == 4


def test_lag_is_a_pods_worst_file_and_what_waits_is_a_sinks() -> None:
    store = Store()
    made = LogMetrics(store)
    row = {"namespace": "shop", "pod": "cart"}
    files = [{**row, "lagBytes": 5, "lagSeconds": 1.5}, {**row, "lagBytes": 6, "lagSeconds": 0.5}]
    made.tell(files, [{"name": "s", "waiting": 7, "bufferedBytes": 8}])
    assert store.value(metrics.LOG_LAG_BYTES, POD) == 11
    assert store.value(metrics.LOG_LAG_SECONDS, POD) == 1.5
    assert store.value(metrics.LOG_WAITING, ("s",)) == 7
    assert store.value(metrics.LOG_BUFFERED, ("s",)) == 8
    assert store.value(metrics.LOG_FILES) == 2
    made.tell([], [])
    assert store.value(metrics.LOG_LAG_BYTES, POD) == 0


def test_what_a_process_had_not_settled_is_accounted_for() -> None:
    """offered == delivered + dropped + dead-lettered + returned + waiting, whoever dies."""
    store = Store()
    made = LogMetrics(store)
    labels = ["s", *POD]
    first = {
        metrics.LOG_OFFERED.name: [labels, 10],
        metrics.LOG_DELIVERED.name: [labels, 4],
        metrics.LOG_RETRIED.name: [labels, 3],
        metrics.LOG_DEAD_LETTERED.name: [labels, 1],
        metrics.LOG_RECORDS_DROPPED.name: [[*labels, "full"], 2],
    }
    made.count({"counts": [[name, *rest] for name, rest in first.items()]})
    made.ended()
    assert store.value(metrics.LOG_RETURNED, tuple(labels)) == 3
    made.count({"counts": [[metrics.LOG_OFFERED.name, labels, 3], [metrics.LOG_DELIVERED.name, labels, 3]]})
    made.ended()
    assert store.value(metrics.LOG_RETURNED, tuple(labels)) == 3
