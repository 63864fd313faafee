"""A worker polls while one request follows another, over HTTP or what is declared TCP, says so, and
sleeps when nobody asks.
"""

from __future__ import annotations

import pytest

from nodeagent.compare import manifests
from nodeagent.compare.load import HTTP_PORT, TCP_PORT
from nodeagent.compare.manifests import PLAIN
from tests.netns.world import QUICK, cluster, scrape
from tests.waiting import eventually


@pytest.mark.parametrize("port", [HTTP_PORT, TCP_PORT], ids=["http", "tcp"])
def test_a_worker_polls_while_it_is_asked_and_sleeps_again(port: int) -> None:
    """Each with a worker of its own: one that has polled begins anew with its next event, such as a probe."""
    # The longest that may be asked for, so that a machine whose processors are busy elsewhere polls
    # too.
    agent = {**QUICK, "proxy": {"busyPollMicroseconds": 1000}}
    with cluster("t-poll", manifests.workload(PLAIN), agent=agent) as lab:
        eventually(lambda: scrape(lab).labels("nodeagent_busy_poll_ratio"), "the worker says how much it polls")
        assert scrape(lab).sum("nodeagent_busy_poll_ratio") == 0
        address = f"http://{lab.address('server', PLAIN)}:{port}/"
        with lab.popen("client", ["wrk", "-t1", "-c1", "-d20s", address], PLAIN) as load:
            try:
                eventually(lambda: 0.01 < scrape(lab).sum("nodeagent_busy_poll_ratio") <= 1, "it polls")
            finally:
                load.kill()
        eventually(lambda: scrape(lab).sum("nodeagent_busy_poll_ratio") == 0, "it sleeps")
