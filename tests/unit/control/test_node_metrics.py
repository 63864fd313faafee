"""What a scrape hears of the node as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from nodeagent.control.node_metrics import NodeMetrics, unusable
from nodeagent.mesh.membership import Membership, Verdict
from nodeagent.mesh.node_pods import NodePod
from nodeagent.telemetry.metrics import HEARTBEAT_AGE, MEMORY, NODE_PODS, Metric
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid


def pod(uid: str, verdict: Verdict, *, terminating: bool = False) -> NodePod:
    return NodePod(
        PodUid(uid), uid, "default", (), Membership(verdict, "because"), None, None, terminating, None, None, ()
    )


def process(proc: Path, pid: int, kilobytes: int) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "smaps_rollup").write_text(
        f"55d0-7ffe ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss: {kilobytes} kB\n"
    )


def of_each(store: Store, metric: Metric, *values: str) -> list[float]:
    return [store.value(metric, (value,)) for value in values]


def test_pods_by_state_memory_by_process_and_the_heartbeats_age(tmp_path: Path) -> None:
    """Input: a worker of which control may not read the memory, or which ended meanwhile (8), besides."""
    process(tmp_path, os.getpid(), 3)
    process(tmp_path, 7, 2)
    process(tmp_path, 9, 5)
    pods = [
        pod("a", "captured"),
        pod("b", "left alone"),
        pod("c", "left alone"),
        pod("d", "captured", terminating=True),
    ]
    store = Store()
    metrics = NodeMetrics(pods, lambda: 5_000_000_000, lambda: [7, 8, 9], proc=tmp_path, clock=lambda: 6_500_000_000)
    metrics.collect(store)
    assert of_each(store, NODE_PODS, "captured", "awaited", "unusable", "left alone", "undecided") == [1, 1, 0, 2, 0]
    assert of_each(store, MEMORY, "control", "workers", "supervisor") == [3 << 10, 7 << 10, 0]
    assert store.value(HEARTBEAT_AGE) == 1.5


def test_a_pod_that_runs_and_cannot_be_captured_is_not_one_that_is_waited_for(tmp_path: Path) -> None:
    """Input: of three pods the runtime says that they cannot be used; one is left alone, one ends."""
    pods = [pod("a", "captured"), pod("b", "captured"), pod("c", "left alone"), pod("d", "captured", terminating=True)]

    def faults(uid: PodUid) -> list[str]:
        return [] if uid == "a" else ["its sandbox: its cgroup is elsewhere"]

    store = Store()
    NodeMetrics(pods, lambda: 0, list, faults=faults, proc=tmp_path).collect(store)
    assert of_each(store, NODE_PODS, "captured", "awaited", "unusable", "left alone") == [1, 1, 1, 1]
    assert unusable(pods, faults) == ["pod default/b: not captured: its sandbox: its cgroup is elsewhere"]


def test_a_heart_that_stopped_is_infinitely_old(tmp_path: Path) -> None:
    store = Store()
    NodeMetrics([], lambda: 0, list, proc=tmp_path).collect(store)
    assert store.value(HEARTBEAT_AGE) == float("inf")
    assert b"nodeagent_heartbeat_age_seconds +Inf\n" in b"".join(store.exposition())
