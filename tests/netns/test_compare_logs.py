"""What logs do to the proxy of their node is measured beside the daemon's own collector and another shipper."""

from __future__ import annotations

import os

import pytest

from nodeagent.compare.load import Client, Sample, closed
from nodeagent.compare.logs import beside
from nodeagent.compare.logs.beside import ProxyBesideLogs
from nodeagent.compare.logs.shippers import AGENT, Shipper
from nodeagent.compare.manifests import PLAIN
from tests.netns.world import left_behind
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # a lab of two nodes
LINES = 1_000_000
"""Seconds, however late this process has its turn."""
SHIPPER = Shipper("another", AGENT.command)


def test_the_proxy_is_measured_beside_each_shipper_and_without() -> None:
    """Agent and shipper keep to one core, all else to the other."""
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    found: list[ProxyBesideLogs] = []
    with beside.logged_node(300.0, LINES) as node:
        client = Client(node.lab, PLAIN)
        url = f"http://{node.lab.address('server', PLAIN)}:8080/"

        def measure() -> Sample:
            seen = node.counted()
            sample = closed(client, url, 1, 1)
            eventually(lambda: not seen or node.counted() > seen, "lines come, where any do")
            return sample

        node.compare(1, measure, found, SHIPPER)
        agent = node.lab.agent("node1").processes()
        assert {frozenset(os.sched_getaffinity(pid)) for pid in agent} == {frozenset({first})}
        assert os.sched_getaffinity(0) == {last}
    assert [each.shipper for each in found] == ["nodeagent", "another"]
    assert {each.without for each in found} == {found[0].without}
    assert all(each.logs.lines_per_second > 0 and each.logs.memory_bytes > 0 for each in found)
    assert all(each.under.requests and each.without.requests for each in found)
    assert os.sched_getaffinity(0) >= {first, last}
    eventually(lambda: not left_behind(beside.BESIDE_LAB), "nothing is left of the lab")
