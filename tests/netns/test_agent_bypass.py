"""Pods that ask for the socket bypass, through the proxy: nothing but the speed may change."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nodeagent.config import MapSizes
from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.redirect import bypass, maps
from tests.netns.test_agent_http import (  # noqa: F401  (they run here once more, with joined sockets)
    test_a_request_is_delivered_counted_and_logged,
    test_an_answer_is_streamed,
    test_an_upgraded_connection_becomes_a_tunnel,
    test_large_answers_are_byte_exact,
    test_large_requests_are_byte_exact,
    test_trailers_arrive_in_both_directions,
)
from tests.netns.test_agent_tcp import (  # noqa: F401
    test_a_connection_is_counted_and_logged,
    test_a_reset_of_the_client_reaches_the_server,
    test_a_reset_of_the_server_reaches_the_client,
    test_a_server_may_speak_first,
    test_a_slow_reader_holds_the_sender_back,
    test_half_close,
    test_transfers_in_both_directions_at_once_are_byte_exact,
)
from tests.netns.world import QUICK, account, client, client_in, cluster, cluster_ip, pod_row, server, service
from tests.waiting import eventually

JOINED = "nodeagent.io/bypass: enabled"
ASKED = merge(QUICK, {"redirect": {"bypass": "asked"}})
"""The programs of this test do nothing that a kernel of today does otherwise on joined sockets."""
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client", labels="version: v1", annotations=JOINED),
        client("other", "node1", account="client"),
        server("local", "node1", account="server", labels="tier: both", annotations=JOINED),
        server("remote", "node2", account="server", labels="tier: both", annotations=JOINED),
        server("unmeshed", "node2", annotations='nodeagent.io/enroll: "false"'),
        service("both", "tier: both"),
    )
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with cluster("t-bypass", TEXT, agent=ASKED) as lab:
        yield lab


@pytest.fixture(scope="module")
def below() -> Iterator[Lab]:
    """The agent as a DaemonSet: its cgroup is below the captured one."""
    with cluster("t-bypass-below", TEXT, agent=ASKED, agent_in_kubepods=True) as lab:
        yield lab


class Watched:
    """The sockets on a node that take part in the bypass since this was made."""

    def __init__(self, lab: Lab) -> None:
        self._maps = maps.open_all(lab.agent("node1").pins / "maps", MapSizes.model_validate({}))
        self._before = set(bypass.streams(self._maps))

    def streams(self) -> dict[bypass.SocketEnds, bypass.BypassedStream]:
        return {side: stream for side, stream in bypass.streams(self._maps).items() if side not in self._before}

    def ways(self) -> Counter[tuple[str, str]]:
        """Which leg those are of that have sent something, and by which way they sent it."""
        found = ((side, stream.way) for side, stream in self.streams().items() if stream.way != "undecided")
        return Counter(
            ("client's" if 15001 in (side.local[1], side.remote[1]) else "server's", way) for side, way in found
        )

    def close(self) -> None:
        """All of them are forgotten."""
        eventually(lambda: not self.streams(), "no socket is joined any more")
        for one in self._maps.values():
            os.close(one.fd)


@contextmanager
def watched(lab: Lab) -> Iterator[Watched]:
    watch = Watched(lab)
    yield watch
    watch.close()


@pytest.mark.parametrize("place", ["mesh", "below"])
@pytest.mark.parametrize("version", [4, 6])
def test_both_legs_are_joined_and_forgotten(request: pytest.FixtureRequest, place: str, version: int) -> None:
    lab = request.getfixturevalue(place)
    with (
        watched(lab) as watch,
        client_in(lab, "client", "hold", cluster_ip(lab, "local", version), 9000, "--connections", 3) as held,
    ):
        assert watch.ways() == {("client's", "socket"): 6, ("server's", "socket"): 6}
        assert held.say() == {"ok": 3, "bad": []}


def test_a_pod_that_does_not_ask_is_left_alone(mesh: Lab) -> None:
    assert [pod_row(mesh, name)["bypass"] for name in ("client", "other", "local")] == [True, False, True]
    with watched(mesh) as watch, client_in(mesh, "other", "hold", cluster_ip(mesh, "local"), 9000) as held:
        assert watch.ways() == {("server's", "socket"): 2}
        assert held.say() == {"ok": 1, "bad": []}


def test_another_node_is_reached_by_tcp(mesh: Lab) -> None:
    with watched(mesh) as watch, client_in(mesh, "client", "hold", cluster_ip(mesh, "remote"), 9000) as held:
        assert watch.ways() == {("client's", "socket"): 2}
        assert held.say() == {"ok": 1, "bad": []}


def test_what_is_not_read_turns_the_direction_to_tcp(mesh: Lab) -> None:
    """The server sends more than the client reads for a while. Verdict: that direction goes by TCP
    from there on, the other does not; every byte arrives.
    """
    sizes = ("--send-bytes", 1000, "--receive-bytes", 20_000_000)
    with (
        watched(mesh) as watch,
        client_in(mesh, "client", "duplex", cluster_ip(mesh, "local"), 9001, *sizes, "--stall") as held,
    ):
        eventually(
            lambda: (
                watch.ways()
                == {
                    ("client's", "socket"): 1,
                    ("client's", "tcp"): 1,
                    ("server's", "socket"): 1,
                    ("server's", "tcp"): 1,
                }
            )
        )
        assert held.process.stdin is not None
        held.process.stdin.write("\n")
        held.process.stdin.flush()
        assert held.hear() == {"ok": 1, "bad": []}
