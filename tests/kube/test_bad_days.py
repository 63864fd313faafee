"""The agents while the way to the API server is as bad as networks and API servers are (``faults.py``)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from nodeagent.lab.kube import Kube
from tests.kube import faults
from tests.kube.cluster import ROOT
from tests.kube.faults import Faults
from tests.kube.mesh import (
    ACCOUNT,
    AGENT,
    SECONDS,
    SYSTEM,
    agent_pods,
    agents,
    alone,
    apply,
    curl,
    enrolled,
    get,
    namespace,
    ready,
    rolled_out,
    says,
    states,
    taken_over,
)
from tests.kube.steady import NODES, asking, pods_addresses, strict_pods
from tests.kube.workloads import client, deployment, service
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents
WEB = "http://web.days/"
SNAPSHOT = "/run/nodeagent/cluster.snapshot"
Rule = dict[str, Any]
"""Of a ClusterRole."""
RIGHTS: list[Rule] = next(
    each["rules"]
    for each in yaml.safe_load_all((ROOT / "daemonset" / "base" / "rbac.yaml").read_text())
    if each["kind"] == "ClusterRole"
)
READ = [rule for rule in RIGHTS if "list" in rule["verbs"]]
TAINTS = next(rule for rule in RIGHTS if rule["resources"] == ["nodes"])
TOLD = [rule for rule in RIGHTS if not {"list", "delete"} & set(rule["verbs"]) and rule != TAINTS]
"""Rules of what a running agent tells; the one with ``delete`` is for ``nodeagent uninstall``."""
KINDS = 5
"""Watches of an agent at least: pods, Services, namespaces, nodes, policies."""


@pytest.fixture(scope="module")
def api(mesh: Kube) -> Iterator[Faults]:
    """What stands between the agents and the API server; the agents begin anew, through it."""
    with faults.before(mesh, ACCOUNT) as found:
        mesh.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/nodeagent")
        rolled_out(mesh)
        eventually(lambda: found.watches >= 2 * KINDS, "watches through the proxy", SECONDS)
        yield found


@pytest.fixture(scope="module")
def days(mesh: Kube, api: Faults) -> Iterator[Kube]:
    apply(
        mesh,
        namespace("days", **{"nodeagent.io/dataplane": "enabled"}),
        deployment("web", "days"),
        service("web", "days"),
        client("days", "node-a"),
        client("default", "node-a", name="stranger"),
    )
    mesh.kubectl("rollout", "status", "-n", "days", "deployment/web", f"--timeout={SECONDS:g}s")
    ready(mesh, "days")
    enrolled(mesh, "node-a", "days/client-node-a")
    ready(mesh, "default", "stranger")
    yield mesh
    mesh.kubectl("delete", "namespace", "days", "--wait=false")
    mesh.kubectl("delete", "pod", "stranger", "--wait=false")


def arrives(kube: Kube, name: str) -> None:
    """A pod that is made now is enrolled, and reaches the Service."""
    apply(kube, client("days", "node-a", name=name))
    ready(kube, "days", name)
    enrolled(kube, "node-a", f"days/{name}")
    assert curl(kube, f"days/{name}", WEB).stdout == "200"
    kube.kubectl("delete", "pod", "-n", "days", name)
    eventually(lambda: f"days/{name}" not in states(kube, "node-a"), f"{name} gone", SECONDS)


def test_watches_that_are_torn_are_taken_up_again(days: Kube, api: Faults) -> None:
    for _ in range(3):
        assert api.tear() >= 2 * KINDS
        eventually(lambda: api.watches >= 2 * KINDS, "watches again", SECONDS)
    arrives(days, "torn")


def test_a_version_that_is_too_old_is_listed_anew(days: Kube, api: Faults) -> None:
    begun = len(api.requests)
    api.expired = True
    api.tear()
    eventually(lambda: sum("watch=" in each for each in api.requests[begun:]) >= 2 * KINDS, "refused watches", SECONDS)
    api.expired = False
    arrives(days, "expired")
    listed = [each for each in api.requests[begun:] if "/pods" in each and "watch=" not in each]
    assert listed, api.requests[begun:]


def test_events_that_come_twice_late_and_out_of_order_end_in_the_truth(days: Kube, api: Faults) -> None:
    api.duplicate = True
    api.reorder = True
    api.delay = 0.05
    for replicas in (4, 1, 2):
        days.kubectl("scale", "-n", "days", "deployment/web", f"--replicas={replicas}")
        days.kubectl("rollout", "status", "-n", "days", "deployment/web", f"--timeout={SECONDS:g}s")
    api.duplicate = api.reorder = False
    api.delay = 0.0
    arrives(days, "late")
    for _ in range(4):
        assert curl(days, "days/client-node-a", WEB).stdout == "200"


@contextmanager
def without(kube: Kube, *rules: Rule) -> Iterator[None]:
    """Within, the agents' ClusterRole has not *rules*."""
    role = get(kube, "clusterrole", "nodeagent")
    kept = [each for each in role["rules"] if each not in rules]
    assert len(kept) == len(role["rules"]) - len(rules)
    take = ["patch", "clusterrole", "nodeagent", "--type=merge", "-p"]
    kube.kubectl(*take, json.dumps({"rules": kept}))
    try:
        for rule in rules:
            ask = ["auth", "can-i", rule["verbs"][-1], f"{rule['resources'][0]}.{rule['apiGroups'][0]}".rstrip(".")]
            asked = kube.kubectl_command([*ask, f"--as={ACCOUNT}", "--all-namespaces"])
            eventually(lambda asked=asked: subprocess.run(asked, capture_output=True, check=False).returncode == 1)
        yield
    finally:
        kube.kubectl(*take, json.dumps({"rules": role["rules"]}))


def test_rights_to_read_that_are_taken_away_are_named_each_and_what_was_known_serves(days: Kube, api: Faults) -> None:
    named = [words({**rule, "resources": [each]}) for rule in READ for each in rule["resources"]]
    with without(days, *READ):
        api.tear()
        for node in NODES:
            eventually(lambda node=node: holds(says(days, node), named), f"{node} names all", SECONDS)
            assert says(days, node).startswith("ready"), "the next rollout would remove it"
        assert curl(days, "days/client-node-a", WEB).stdout == "200"
    eventually(lambda: all("ClusterRole" not in says(days, node) for node in NODES), "all is read again", SECONDS)


def test_an_agent_that_may_not_read_everything_leaves_the_node_to_the_one_before(days: Kube, api: Faults) -> None:
    """Verdict: the new agent, which lacks a right from its start on, is not ready and names the rule; the
    old one serves; with the right the rollout goes on by itself.
    """
    eventually(lambda: alone(days), "no agent of an earlier test drains any more", SECONDS)
    ready(days, SYSTEM, *AGENT)
    before = agent_pods(days)
    rule = READ[0]
    with without(days, rule):
        days.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/nodeagent")
        eventually(lambda: words(rule) in log_of_all(days), "the rule is in the new one's log", SECONDS)
        assert not taken_over(days, before)
        assert not any("deletionTimestamp" in each["metadata"] for each in agent_pods(days))
        assert curl(days, "days/client-node-a", WEB).stdout == "200"
    eventually(lambda: taken_over(days, before), "every agent is another one", SECONDS)
    eventually(lambda: alone(days), "the old agents have ended", SECONDS)


def test_rights_to_tell_something_that_are_missing_are_named_each(days: Kube, api: Faults) -> None:
    wrong = client("days", "node-a", name="wrong")
    wrong["metadata"]["annotations"] = {"traffic.sidecar.istio.io/excludeInboundPorts": "eighty"}
    with without(days, TAINTS):  # by itself: an agent that lacks something else leaves the taint where it is
        days.kubectl("taint", "--overwrite", "node", "node-a", "nodeagent.io/agent-not-ready=:PreferNoSchedule")
        eventually(lambda: holds(log_of_all(days), [words(TAINTS)]), "the taint's rule is in the log", SECONDS)
    with without(days, *TOLD):
        apply(days, wrong)  # an event, and one pod more that takes mTLS
        named = [words(rule) for rule in TOLD]
        eventually(lambda: holds(log_of_all(days), named), "the rules are in the log", SECONDS)
        assert curl(days, "days/client-node-a", WEB).stdout == "200"
    eventually(lambda: "taints" not in get(days, "node", "node-a")["spec"], "the taint is taken off", SECONDS)
    uid = get(days, "pod", "-n", "days", "wrong")["metadata"]["uid"]
    eventually(lambda: uid in status(days, "node-a")["enrolled"], "other nodes are told", SECONDS)
    eventually(lambda: "AnnotationRefused" in days.kubectl("get", "events", "-n", "days"), "an event is there", SECONDS)
    days.kubectl("delete", "pod", "-n", "days", "wrong")


def status(kube: Kube, node: str) -> Any:
    """Return what *node*'s agent tells the others."""
    return get(kube, "nodestatus", node)["status"]


def holds(said: str, named: Sequence[str]) -> bool:
    """Say whether *said* names all of *named*; an AssertionError names those that are missing."""
    assert not (missing := [each for each in named if each not in said]), missing
    return True


def words(rule: Rule) -> str:
    """Return how a rule is named."""
    group, resource, verbs = rule["apiGroups"][0], rule["resources"][0], ", ".join(rule["verbs"])
    return f'{{apiGroups: ["{group}"], resources: [{resource}], verbs: [{verbs}]}}'


def log_of_all(kube: Kube) -> str:
    return kube.kubectl("logs", "-n", SYSTEM, *AGENT, "-c", "agent", "--tail=-1", "--ignore-errors")


def test_while_the_api_server_is_away_the_mesh_goes_on(days: Kube, api: Faults) -> None:
    """Input: no agent reaches it for longer than nodes' leases are, while STRICT pods are asked, and a pod is
    made. Verdict: no request fails and no stream is cut; the new pod is named, and has no identity, so that
    STRICT servers refuse it; when the API server is back it is in the mesh.
    """
    with strict_pods(days), asking(days, *pods_addresses(days)) as asks:
        kinds = 3 * len(NODES)
        asks.goes_on(kinds)
        api.away = True
        try:
            api.tear()
            apply(days, client("days", "node-a", name="meanwhile"))
            ready(days, "days", "meanwhile")
            eventually(lambda: "days/meanwhile" in says(days, "node-a"), "the pod is named", SECONDS)
            server = pods_addresses(days)[1]
            assert curl(days, "days/meanwhile", f"http://{server}/").returncode == 56
            assert curl(days, "days/client-node-a", f"http://{server}/").stdout == "200"
            eventually(lambda: all(lease_is_over(days, node) for node in NODES), "both leases are over", SECONDS)
            asks.goes_on(kinds)
        finally:
            api.away = False
        enrolled(days, "node-a", "days/meanwhile")
        eventually(lambda: curl(days, "days/meanwhile", f"http://{server}/").stdout == "200", "it is let in", SECONDS)
        asks.goes_on(kinds)
    days.kubectl("delete", "pod", "-n", "days", "meanwhile", "--wait=false")


def lease_is_over(kube: Kube, node: str) -> bool:
    """Say whether *node*'s agent has not renewed what it tells for as long as that holds."""
    told = status(kube, node)
    age = datetime.now(UTC) - datetime.fromisoformat(told["renewTime"])
    return age > timedelta(seconds=told["leaseDurationSeconds"])


def test_an_agent_that_starts_while_the_api_server_is_away_goes_by_what_was_kept(days: Kube, api: Faults) -> None:
    """Input: an agent ends, and its successor reaches no API server: the container runtime and what was kept
    on disk say everything. Verdict: it is ready, its pods are themselves, also for STRICT servers of the other
    node, and are protected themselves.
    """
    with strict_pods(days):
        near, far = pods_addresses(days)
        uid = get(days, "pod", "-n", "steady", "server-node-b")["metadata"]["uid"]
        kept = days.command("node-a", ["grep", "-q", f'"enrolled":.*{uid}', SNAPSHOT])
        eventually(lambda: subprocess.run(kept, check=False).returncode == 0, "the snapshot has the pods", SECONDS)
        old = agents(days)["node-a"]
        api.away = True
        try:
            api.tear()
            days.kubectl("delete", "pod", "-n", SYSTEM, old, f"--timeout={SECONDS:g}s", seconds=SECONDS)
            eventually(lambda: says(days, "node-a"), "another agent answers", SECONDS)
            enrolled(days, "node-a", "steady/client-node-a", "steady/server-node-a")
            eventually(lambda: says(days, "node-a").startswith("ready"), "it is ready", SECONDS)
            for server in (near, far):
                assert curl(days, "steady/client-node-a", f"http://{server}/").stdout == "200"
            assert curl(days, "default/stranger", f"http://{near}/").returncode == 56
        finally:
            api.away = False
        rolled_out(days)


def test_an_agent_that_knows_nothing_of_the_cluster_captures_nobody_and_opens_nothing(days: Kube, api: Faults) -> None:
    """Input: an agent is killed, what it kept is damaged, and the API server is away. Verdict: the next one
    names the file and is not ready; STRICT pods stay closed; with the API server everything is as before.
    """
    with strict_pods(days):
        near = pods_addresses(days)[0]
        api.away = True
        try:
            api.tear()
            kill = f"pkill -KILL -f '[n]odeagent run -c'; echo > {SNAPSHOT}"  # who ends in order writes it once more
            subprocess.run(days.command("node-a", ["sh", "-c", kill]), check=False)
            eventually(lambda: "it is ignored, and written anew" in log_of_all(days), "the file is named", SECONDS)
            assert not is_ready(days, "node-a")
            assert curl(days, "default/stranger", f"http://{near}/").stdout == "000"
            assert not is_ready(days, "node-a")
        finally:
            api.away = False
        eventually(lambda: is_ready(days, "node-a"), "it is ready", SECONDS)
        enrolled(days, "node-a", "steady/client-node-a", "steady/server-node-a")
        assert curl(days, "steady/client-node-a", f"http://{near}/").stdout == "200"


def is_ready(kube: Kube, node: str) -> bool:
    """Say whether the kubelet finds *node*'s agent ready."""
    (told,) = get(kube, "pod", "-n", SYSTEM, agents(kube)[node])["status"]["containerStatuses"]
    return bool(told["ready"])
