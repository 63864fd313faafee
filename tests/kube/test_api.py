"""The source of a cluster's state and its marks, with a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent import uninstall
from nodeagent.config import Kubernetes
from nodeagent.kube import pod_messages
from nodeagent.kube.access import ApiError, open_access
from nodeagent.kube.client import MERGE, PROTOBUF, KubeClient
from nodeagent.kube.events import EventTeller, Trouble
from nodeagent.kube.kinds import FOLLOWED
from nodeagent.kube.lean import Lean
from nodeagent.kube.node_status import NodeStatuses, NodeStatusMarks
from nodeagent.kube.source import KubernetesSource
from nodeagent.kube.taint import TAINT, untaint
from nodeagent.parts import Parts
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.objects import PodObject, parse
from nodeagent.uninstall import Removed
from nodeagent.vocabulary import PodUid
from tests.kube.cluster import ROOT, Cluster
from tests.waiting import DEADLINE, eventually, until

CRDS = ("daemonset/base/crds", "daemonset/overlays/crds")


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Cluster]:
    for folder in CRDS:
        cluster.kubectl("apply", "-k", str(ROOT / folder))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    cluster.namespace("shop")
    yield cluster
    cluster.kubectl("delete", "namespace", "shop", "--wait=false")
    for folder in CRDS:
        cluster.kubectl("delete", "-k", str(ROOT / folder), "--wait=false")


def pod(name: str, node: str = "node1") -> dict[str, Any]:
    container = {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 80}]}
    return {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [container]}}


def peer_authentication(mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "all"},
        "spec": {"mtls": {"mode": mode}},
    }


PODS = "/api/v1/namespaces/shop/pods"
POLICIES = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications"


class Follower:
    """What a source has told."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.known: dict[tuple[str, str], Any] = {}
        self.enrolled: set[str] = set()
        self.told: list[AnyChange] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Follow until *condition* holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                for change in await self.source.changes():
                    self._take(change)

    def has(self, kind: str, name: str) -> bool:
        return self.known.get((kind, name)) is not None

    def _take(self, change: AnyChange) -> None:
        self.told.append(change)
        if isinstance(change, EnrolledChange):
            (self.enrolled.add if change.enrolled else self.enrolled.discard)(change.uid)
            return
        assert isinstance(change, Change)
        self.known[change.kind, change.name] = change.object


def follow(cluster: Cluster, scene: Callable[[Follower, KubeClient], Awaitable[None]], **given: Any) -> None:
    """Run *scene* with what node1 follows."""

    async def main() -> None:
        client = KubeClient(open_access(cluster.kubeconfig))
        source = KubernetesSource(client, "node1", **given)
        try:
            await scene(Follower(source), client)
        finally:
            source.close()

    asyncio.run(main())


def test_what_is_there_and_what_changes_is_told(api: Cluster) -> None:
    async def scene(seen: Follower, client: KubeClient) -> None:
        await client.post(PODS, pod("early"))
        await client.post(POLICIES, peer_authentication("STRICT"))
        await seen.until(lambda: seen.has("Pod", "early") and seen.has("PeerAuthentication", "all"))
        assert seen.has("Namespace", "shop") and seen.has("Service", "kubernetes")
        assert seen.source.missing() == [] and seen.source.unread_pods() == []
        await client.post(PODS, pod("late", "node2"))
        await seen.until(lambda: seen.has("Pod", "late"))
        await client.patch(f"{PODS}/late", {"metadata": {"labels": {"app": "web"}}})
        await seen.until(lambda: seen.known["Pod", "late"].labels.get("app") == "web")
        for path in (f"{PODS}/late?gracePeriodSeconds=0", f"{PODS}/early?gracePeriodSeconds=0", f"{POLICIES}/all"):
            await client.delete(path)
        await seen.until(lambda: not any(seen.has(*key) for key in (("Pod", "late"), ("PeerAuthentication", "all"))))

    follow(api, scene)


def test_what_happens_while_a_source_is_closed_is_told_after(api: Cluster) -> None:
    async def scene(seen: Follower, client: KubeClient) -> None:
        await client.post(PODS, pod("goes"))
        await seen.until(lambda: seen.has("Pod", "goes"))
        seen.source.close()
        await client.delete(f"{PODS}/goes?gracePeriodSeconds=0")
        await client.post(PODS, pod("comes"))
        seen.told.clear()
        await seen.until(lambda: seen.has("Pod", "comes") and not seen.has("Pod", "goes"))
        assert {change.name for change in seen.told if isinstance(change, Change)} == {"goes", "comes"}
        await client.delete(f"{PODS}/comes?gracePeriodSeconds=0")

    follow(api, scene)


def test_what_is_very_large_or_very_deep_keeps_nothing_behind_it_from_being_told(api: Cluster) -> None:
    """Input: a pod of 0.7 MB that is 4.2 MB in a watch, as Go writes ``<`` as six bytes, and a policy with mappings
    in mappings, 2000 deep. Verdict: both are told, and what comes after them; by a watch, and by a listing.
    """
    large = pod("large")
    large["spec"]["containers"][0]["env"] = [{"name": "A", "value": "<" * 700_000}]
    policy = peer_authentication("STRICT")
    policy["spec"]["deep"] = "DEEP"
    deep = json.dumps(policy).replace('"DEEP"', '{"a":' * 2000 + "1" + "}" * 2000)

    async def scene(seen: Follower, client: KubeClient) -> None:
        await seen.until(lambda: seen.has("Namespace", "shop"))
        await client.post(PODS, large)
        await client.post(PODS, pod("behind"))
        await asyncio.to_thread(api.kubectl, "create", "--raw", POLICIES, "-f", "-", stdin=deep)
        await seen.until(lambda: seen.has("Pod", "behind") and seen.has("PeerAuthentication", "all"))
        assert seen.has("Pod", "large")

    async def again(seen: Follower, client: KubeClient) -> None:
        await seen.until(lambda: seen.has("Pod", "behind") and seen.has("PeerAuthentication", "all"))
        assert seen.has("Pod", "large")
        for path in (f"{PODS}/large?gracePeriodSeconds=0", f"{PODS}/behind?gracePeriodSeconds=0", f"{POLICIES}/all"):
            await client.delete(path)

    follow(api, scene)
    follow(api, again)


def test_one_node_hears_what_another_says_of_its_pods(api: Cluster) -> None:
    """Verdict: node2's object is made by its first word, and read by node1; what is no status is
    refused by the schema.
    """

    async def scene(seen: Follower, client: KubeClient) -> None:
        parts = Parts()
        marks = NodeStatusMarks(client, "node2", NodeStatuses("node2"), list, here=frozenset)
        async with marks.run(parts):
            marks.publish(PodUid("uid-a"), True)
            marks.publish(PodUid("uid-b"), True)
            await seen.until(lambda: seen.enrolled == {"uid-a", "uid-b"})
            marks.publish(PodUid("uid-a"), False)
            await seen.until(lambda: seen.enrolled == {"uid-b"})
            assert marks.missing() == []
            parts.stop()
        await client.delete("/apis/nodeagent.io/v1alpha1/nodestatuses/node2")
        await seen.until(lambda: not seen.enrolled)

    follow(api, scene)


def test_a_kind_that_comes_later_is_followed(api: Cluster) -> None:
    """Input: no CustomResourceDefinition of RateLimits; then there is one, with an object."""

    async def brief(_: float) -> None:
        await asyncio.sleep(0.1)  # between two looks for the kind, on a real API server

    limit = {
        "apiVersion": "nodeagent.io/v1alpha1",
        "kind": "RateLimit",
        "metadata": {"name": "slow"},
        "spec": {"local": [{"tokenBucket": {"maxTokens": 1, "fillInterval": "1s"}}]},
    }
    definition = str(ROOT / "daemonset/base/crds/ratelimits.yaml")
    api.kubectl("delete", "-f", definition)

    async def scene(seen: Follower, client: KubeClient) -> None:
        await seen.until(lambda: seen.has("Namespace", "shop"))
        assert seen.source.missing() == []
        await asyncio.to_thread(api.kubectl, "apply", "-f", definition)
        await asyncio.to_thread(api.kubectl, "wait", "--for=condition=Established", "-f", definition)
        await client.post("/apis/nodeagent.io/v1alpha1/namespaces/shop/ratelimits", limit)
        await seen.until(lambda: seen.has("RateLimit", "slow"))

    follow(api, scene, sleep=brief)


# -- with the rights that daemonset/base gives --

SYSTEM = "nodeagent-system"
RIGHTS = ("rbac.yaml", "own-node.yaml")


@pytest.fixture(scope="module")
def rights(api: Cluster) -> Iterator[Cluster]:
    """The agent's account with its rights, and a node with the agent's pod."""
    api.namespace(SYSTEM)
    for name in RIGHTS:
        api.kubectl("apply", "-n", SYSTEM, "-f", str(ROOT / "daemonset/base" / name))
    for name in ("node1", "node2"):
        taints = [{"key": key, "effect": "NoSchedule"} for key in (TAINT, "other")]
        api.ok("POST", "/api/v1/nodes", {"metadata": {"name": name}, "spec": {"taints": taints}})
    agent = pod("agent")
    agent["spec"]["serviceAccountName"] = "nodeagent"
    api.ok("POST", f"/api/v1/namespaces/{SYSTEM}/pods", agent)
    # A policy is in force some moments after it was made; until then all that is asked here would be done.
    tried = "/api/v1/nodes/node2?dryRun=All"
    eventually(lambda: _refusal(api, lambda client: client.patch(tried, {"metadata": {"labels": {"a": "b"}}}, MERGE)))
    yield api
    for name in ("node1", "node2"):
        api.ok("DELETE", f"/api/v1/nodes/{name}")
    for name in RIGHTS:
        api.kubectl("delete", "-n", SYSTEM, "-f", str(ROOT / "daemonset/base" / name), "--wait=false")
    api.kubectl("delete", "namespace", SYSTEM, "--wait=false")


def account(cluster: Cluster) -> Path:
    """Return a kubeconfig of the agent's account, with a token that is bound to its pod."""
    uid = cluster.ok("GET", f"/api/v1/namespaces/{SYSTEM}/pods/agent")["metadata"]["uid"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "agent", "uid": uid}
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/nodeagent/token"
    return cluster.write_kubeconfig(
        "agent", cluster.ok("POST", path, {"spec": {"boundObjectRef": bound}})["status"]["token"]
    )


def taints(cluster: Cluster, node: str) -> list[str]:
    return [each["key"] for each in cluster.ok("GET", f"/api/v1/nodes/{node}")["spec"].get("taints", [])]


def test_the_rights_are_enough_for_all_that_an_agent_does_and_for_its_own_node_alone(rights: Cluster) -> None:
    async def main() -> None:
        client = KubeClient(open_access(account(rights)))
        source = KubernetesSource(client, "node1")
        await asyncio.wait_for(source.changes(), DEADLINE)
        assert source.missing() == [] and source.tainted
        marks = NodeStatusMarks(client, "node1", source.statuses, source.mark, here=source.here)
        parts = Parts()
        async with marks.run(parts):
            marks.publish(PodUid("uid-a"), True)
            path = "/apis/nodeagent.io/v1alpha1/nodestatuses/node1"
            await until(lambda: rights.call("GET", path)[0] == 200)
            assert marks.missing() == []
            parts.stop()
        (owner,) = rights.ok("GET", path)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Node", "node1")
        assert await untaint(client, "node1")
        assert TAINT not in taints(rights, "node1") and "other" in taints(rights, "node1")
        trouble = Trouble("v1", "Pod", SYSTEM, "agent", "", "NotCaptured", "as a test")
        teller = EventTeller(client, "node1", lambda: [trouble])
        await teller.look()
        await teller.look()
        listed = rights.ok("GET", f"/apis/events.k8s.io/v1/namespaces/{SYSTEM}/events")["items"]
        assert [each["note"] for each in listed if each["reportingInstance"] == "node1"] == ["as a test"]
        source.close()

    asyncio.run(main())


def test_of_other_nodes_and_beyond_taints_nothing_may_be_written(rights: Cluster) -> None:
    """The rights are those of all agents; the policy beside them knows which node one is on."""
    assert _refusal(rights, lambda client: untaint(client, "node2"))
    assert TAINT in taints(rights, "node2")
    labelled = {"metadata": {"labels": {"role": "control-plane"}}}
    assert "changes nothing else" in _refusal(
        rights, lambda client: client.patch("/api/v1/nodes/node1", labelled, MERGE)
    )
    stranger = NodeStatuses("node2")
    marks: list[str] = []

    async def main() -> None:
        told = NodeStatusMarks(KubeClient(open_access(account(rights))), "node2", stranger, list, here=frozenset)
        parts = Parts()
        async with told.run(parts):
            told.publish(PodUid("uid-x"), True)
            async with asyncio.timeout(DEADLINE):
                while not told.missing():
                    await asyncio.sleep(0.05)  # as long as the API server takes
            marks.extend(told.missing())
            parts.stop()

    asyncio.run(main())
    assert "own node alone" in marks[0]


def _refusal(cluster: Cluster, ask: Callable[[KubeClient], Awaitable[object]]) -> str:
    """Return what the API server says against *ask*, empty: nothing."""

    async def main() -> str:
        try:
            await ask(KubeClient(open_access(account(cluster))))
        except ApiError as error:
            return str(error)
        return ""

    return asyncio.run(main())


STATUSES = "/apis/nodeagent.io/v1alpha1/nodestatuses"


@pytest.fixture
def statuses(rights: Cluster) -> Iterator[Cluster]:
    """Two nodes that say something, as their agents did."""
    names = ("node1", "node2")
    for name in names:
        rights.call("DELETE", f"{STATUSES}/{name}")
        spoken: dict[str, Any] = {
            "apiVersion": "nodeagent.io/v1alpha1",
            "kind": "NodeStatus",
            "metadata": {"name": name},
        }
        spoken["status"] = {"enrolled": ["a"], "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}
        rights.ok("POST", STATUSES, spoken)
    yield rights
    for name in names:
        rights.call("DELETE", f"{STATUSES}/{name}")


def told_no_more(cluster: Cluster, node: str) -> list[Removed]:
    """Take back what *node* tells the others, as the agent's account may; return what went."""
    kubernetes = Kubernetes.model_validate({"kubeconfig": str(account(cluster))})
    return list(uninstall._node_status(node, kubernetes))


def test_a_node_that_is_cleaned_tells_nothing_any_more_and_no_other_node_is_touched(
    statuses: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    assert [each.path for each in told_no_more(statuses, "node1")] == [f"{STATUSES}/node1"]
    assert told_no_more(statuses, "node1") == [] and caplog.text == "", "it may be done again"
    assert told_no_more(statuses, "node2") == []
    assert "own node alone" in caplog.text
    listed = statuses.ok("GET", STATUSES)["items"]
    assert [each["metadata"]["name"] for each in listed] == ["node2"]


def test_without_the_right_to_delete_what_a_node_tells_stays_and_the_rule_is_named(
    statuses: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent"
    rules = statuses.ok("GET", path)["rules"]
    (rule,) = [each for each in rules if "delete" in each["verbs"]]
    statuses.ok("PATCH", path, {"rules": [each for each in rules if each != rule]}, MERGE)
    tried = f"{STATUSES}/node1?dryRun=All"
    try:
        eventually(lambda: "is forbidden" in _refusal(statuses, lambda client: client.delete(tried)))
        assert told_no_more(statuses, "node1") == []
    finally:
        statuses.ok("PATCH", path, {"rules": rules}, MERGE)
    named = f'{{apiGroups: ["{rule["apiGroups"][0]}"], resources: [{rule["resources"][0]}], verbs: [delete]}}'
    assert "NodeStatus node1 stays" in caplog.text and named in caplog.text
    assert statuses.call("GET", f"{STATUSES}/node1")[0] == 200
    eventually(lambda: not _refusal(statuses, lambda client: client.delete(tried)), "the right is back")
    assert [each.path for each in told_no_more(statuses, "node1")] == [f"{STATUSES}/node1"]


def test_events_are_told_in_nobody_elses_name(rights: Cluster) -> None:
    document = {
        "metadata": {"name": "forged", "namespace": SYSTEM},
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": SYSTEM, "name": "agent"},
        "type": "Warning",
        "reason": "Killing",
        "action": "Kill",
        "note": "as a test",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "kubelet",
        "reportingInstance": "node1",
    }
    path = f"/apis/events.k8s.io/v1/namespaces/{SYSTEM}/events"
    assert "in nobody else's name" in _refusal(rights, lambda client: client.post(path, document))


def test_without_rights_each_rule_is_named(rights: Cluster) -> None:
    rights.kubectl("delete", "clusterrolebinding", "nodeagent")
    try:

        async def main() -> None:
            source = KubernetesSource(KubeClient(open_access(account(rights))), "node1")
            waiting = asyncio.ensure_future(source.changes())
            async with asyncio.timeout(DEADLINE):
                while len(source.missing()) < len(FOLLOWED):
                    await asyncio.sleep(0.05)  # as long as the API server takes to refuse each
            words = "\n".join(source.missing())
            for kind in FOLLOWED:
                assert f"resources: [{kind.plural}], verbs: [list, watch]" in words
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        asyncio.run(main())
    finally:
        rights.kubectl("apply", "-n", SYSTEM, "-f", str(ROOT / "daemonset/base/rbac.yaml"))


def test_a_pod_is_the_same_in_both_forms_of_the_api(api: Cluster) -> None:
    """Input: a pod with all that is read of one. Verdict: its protobuf says what its JSON says, and read
    quickly, as of another node, what it says read with care.
    """
    client = KubeClient(open_access(api.kubeconfig))
    body = pod("both")
    body["metadata"] |= {"labels": {"app": "both"}, "annotations": {"nodeagent.io/path": "proxy"}}
    body["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "both", "uid": "1", "controller": True}
    ]
    container = body["spec"]["containers"][0]
    container["livenessProbe"] = {"httpGet": {"port": "http", "path": "/live"}}
    container["readinessProbe"] = {"grpc": {"port": 80, "service": "s"}}
    container["startupProbe"] = {"exec": {"command": ["true"]}}
    container["lifecycle"] = {"preStop": {"httpGet": {"port": 80, "path": "/stop"}}}
    body["spec"]["volumes"] = [{"name": "s", "csi": {"driver": "csi.nodeagent.io", "readOnly": True}}]
    body["spec"]["initContainers"] = [{"name": "proxy", "image": "envoy:1", "restartPolicy": "Always"}]
    api.ok("POST", PODS, body)
    status = {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}
    status["conditions"] = [{"type": "Ready", "status": "True"}]
    said = api.ok("PATCH", f"{PODS}/both/status", {"status": status}, MERGE)
    where = f"{PODS}?fieldSelector=metadata.name%3Dboth"
    (message,) = pod_messages.read_list(asyncio.run(client.content(where, PROTOBUF))).items
    found = pod_messages.document(message)
    assert parse({**found, "kind": "Pod", "apiVersion": "v1"}) == parse(said)
    del message.spec.initContainers[:]
    del said["spec"]["initContainers"]
    quick = pod_messages.ordinary(message, "node2", Lean())
    careful = parse(said)
    assert isinstance(careful, PodObject)
    assert quick == Lean().pod(careful, full=False)
    api.ok("DELETE", f"{PODS}/both")
