"""Many connections between two nodes over few of mTLS: each pod by itself, judged by policies as they
change, over reloads without a failed request, and with a sidecar's Envoy as without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.proxy.shared.link import LOST_SECONDS
from tests.netns import sidecar
from tests.netns.test_agent_policy import Policies, policy
from tests.netns.test_agent_processes import reload
from tests.netns.test_agent_upgrade import go_on, gone
from tests.netns.world import (
    QUICK,
    Client,
    about,
    account,
    admin,
    client,
    client_in,
    cluster,
    cluster_ip,
    growth,
    server,
)
from tests.waiting import eventually

PREFIX = "spiffe://cluster.local/ns/default/sa"
TEXT = "".join(
    (
        account("one", "two", "server"),
        client("one", "node1", account="one"),
        client("two", "node1", account="two"),
        server("remote", "node2", account="server"),
        sidecar.pod("envoy", "node2", account="server"),
    )
)
ONLY_ONE = policy(
    "only-one",
    "{selector: {matchLabels: {app: remote}}, action: ALLOW, "
    "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/one]}}]}]}",
)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    logs = tmp_path_factory.mktemp("envoy")
    with (
        cluster("t-shared", TEXT, agent=merge(QUICK, {"resources": [str(folder)]})) as lab,
        ExitStack() as stack,
    ):
        envoy = sidecar.start(lab, "envoy", Path(logs) / "envoy.log", admits=["one"])
        stack.callback(envoy.wait, 20)
        stack.callback(envoy.terminate)
        eventually(lambda: sidecar.certificate(lab, "envoy")[0] == f"{PREFIX}/server", "it has its certificate")
        yield Policies(lab, folder)


def flows(lab: Lab, node: str = "node2") -> list[dict[str, Any]]:
    """Return the flows of open connections that *node* tells."""
    found: list[dict[str, Any]] = admin(lab, node, "/flows")["flows"]
    return [flow for flow in found if flow["closed"] is None]


def shared(lab: Lab) -> set[str]:
    """Return whose shared connections the server's node has open."""
    return {flow["source_identity"] for flow in flows(lab) if flow["protocol"] == "shared"}


def loads(lab: Lab, stack: ExitStack, source: str, target: str = "remote", version: int = 4) -> Client:
    address = cluster_ip(lab, target, version)
    return stack.enter_context(client_in(lab, source, "load", address, 80, "--connections", 8))


def refused_alone(asking: Client) -> int:
    """Return how often *asking* was served, 0 while it still is."""
    before = asking.say()
    eventually(lambda: sum(asking.say().values()) > sum(before.values()) + 50, "it goes on asking")
    after = asking.say()["ok"]
    return int(after) if after == before["ok"] else 0


@pytest.mark.parametrize("version", [4, 6])
def test_pods_share_with_themselves_alone(policies: Policies, version: int) -> None:
    lab = policies.lab
    counted = growth(lab, "node2")
    with ExitStack() as stack:
        clients = {name: loads(lab, stack, name, version=version) for name in ("one", "two")}
        eventually(lambda: shared(lab) == {f"{PREFIX}/one", f"{PREFIX}/two"}, "both share")
        results = {name: each.finish() for name, each in clients.items()}
    for name, result in results.items():
        assert set(result) == {"ok"}, result
        labels = {"source_principal": f"{PREFIX}/{name}", "connection_security_policy": "mutual_tls"}
        counted.comes_to(result["ok"], "istio_requests_total", request_protocol="http", **labels)


def test_a_policy_tells_who_shares_from_who_may(policies: Policies) -> None:
    """While both ask without end, only one may, then both again."""
    lab = policies.lab
    with ExitStack() as stack:
        one, two = loads(lab, stack, "one"), loads(lab, stack, "two")
        eventually(lambda: len(shared(lab)) == 2, "both share")
        policies.put("test", ONLY_ONE)
        try:
            # what was under way when it came may be cut, with its connection
            eventually(lambda: any("403" in outcome for outcome in two.say()), "two is refused")
            served = eventually(lambda: refused_alone(two), "nothing of two is served any more")
        finally:
            policies.drop("test")
        eventually(lambda: two.say()["ok"] > served + 20, "two is served again")
        assert set(one.finish()) == {"ok"}


def test_reloads_at_both_ends_lose_no_request(policies: Policies) -> None:
    lab = policies.lab
    with ExitStack() as stack:
        clients = [loads(lab, stack, "one") for _ in range(2)]
        knocks = stack.enter_context(client_in(lab, "one", "knock", cluster_ip(lab, "remote"), 9000, "--pause", 0.01))
        for node in ("node2", "node1", "node2"):
            reload(lab, node)
            go_on([*clients, knocks])
        assert shared(lab)
        results = [each.finish() for each in (*clients, knocks)]
    assert all(set(result) == {"ok"} for result in results), results


def test_no_idle_one_keeps_a_daemon_that_was_succeeded(policies: Policies) -> None:
    """Input: shared connections without streams, with streams between two requests of clients that stay, and
    of a pod whose network has vanished. Verdict: the old daemon ends; who stays is served by the new one.
    """
    lab = policies.lab
    agent = lab.agent("node2")
    remote = cluster_ip(lab, "remote")
    lab.apply(text=client("brief", "node1", account="two"))
    asked = "GET /about HTTP/1.1\r\nHost: remote\r\n\r\n"
    with ExitStack() as stack:
        busy = [loads(lab, stack, name) for name in ("one", "brief")]
        eventually(lambda: len(shared(lab)) == 2, "both share")
        stay = [
            stack.enter_context(client_in(lab, "one", "dial", remote, 80, "--send", asked, "--linger"))
            for _ in range(3)
        ]
        for each in busy:
            assert set(each.finish()) == {"ok"}
        uid = lab.pod("brief")["metadata"]["uid"]
        done = lab.exec("node1", ["ip", "link", "delete", f"veth{uid[:8]}"])
        assert done.returncode == 0, done
        assert len(shared(lab)) == 2
        old = agent.succeed()
        # what had a network that vanished is given up after LOST_SECONDS
        eventually(lambda: gone(old), "the old daemon has ended", 2 * LOST_SECONDS)
        assert [each.process.poll() for each in stay] == [None] * 3
    lab.delete_pod("brief", grace_seconds=0)
    assert about(lab, "one", f"http://{remote}")["pod"] == "remote"


def test_a_sidecars_envoy_is_asked_as_ever(policies: Policies) -> None:
    lab = policies.lab
    with ExitStack() as stack:
        busy = loads(lab, stack, "one", "envoy")
        eventually(lambda: busy.say()["ok"] > 100, "Envoy answers")
        assert set(busy.finish()) == {"ok"}
    seen = about(lab, "one", f"http://{cluster_ip(lab, 'envoy')}")
    assert f"URI={PREFIX}/one" in seen["headers"]["x-forwarded-client-cert"]
