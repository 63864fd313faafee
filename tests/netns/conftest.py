"""The lab that most end-to-end tests of the agent share. A test that kills or changes what others
need makes its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.world import QUICK, account, client, cluster, server, service

CLUSTER = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client", labels="version: v1"),
        client("far", "node2", account="client"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server", labels="tier: both, version: v7"),
        server("remote", "node2", account="server", labels="tier: both"),
        server("unmeshed", "node2", annotations='nodeagent.io/enroll: "false"'),
        service("both", "tier: both"),
        service("headless", "tier: both", headless=True),
        service("nobody", "app: nobody"),
    )
)


@pytest.fixture(scope="session")
def mesh() -> Iterator[Lab]:
    """Two nodes with agents, PERMISSIVE."""
    patient = {"proxy": {"timeouts": {"handshake": 60, "connect": 30}}}  # a thousand at once, on a busy machine
    with cluster("t-mesh", CLUSTER, agent=merge(QUICK, patient)) as lab:
        yield lab
