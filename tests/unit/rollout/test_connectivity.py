"""What the test of paths makes in a cluster: pods that may be anywhere, and what their image is pulled by."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.rollout.connectivity import Connectivity
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.placement import DAEMON_SET
from nodeagent.rollout.resources import ClusterObjects, ResourceType

KEYS = "registry"
READY = {"phase": "Succeeded", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}


class Cluster(ClusterObjects):
    """A cluster of one node in which every pod is ready at once, and hears what it wants."""

    def __init__(self, *, by: str, secret: bool = True, forbidden: bool = False) -> None:
        pulling = {"imagePullSecrets": [{"name": KEYS}]}
        spec = {"serviceAccountName": "nodeagent", "containers": [{"name": "agent", "image": "private/nodeagent:1"}]}
        agents = {"spec": {"template": {"spec": spec | (pulling if by == "pods" else {})}}}
        system = DAEMON_SET.namespace
        self.there: dict[ObjectName, KubeObject] = {
            DAEMON_SET: agents,
            ObjectName("v1", "ServiceAccount", system, "nodeagent"): pulling if by == "account" else {},
        }
        if secret:
            keys = {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}
            self.there[ObjectName("v1", "Secret", system, KEYS)] = keys
        self.forbidden = forbidden
        self.applied: list[KubeObject] = []

    async def find(self, api_version: str, kind: str) -> ResourceType | None:
        return None

    async def list(self, api_version: str, kind: str, *, namespace: str = "", labels: str = "") -> list[KubeObject]:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        return [{"metadata": {"name": "node1"}, "spec": {}, "status": ready}] if kind == "Node" else []

    async def get(self, name: ObjectName) -> KubeObject | None:
        if name.kind == "Secret" and self.forbidden:
            raise ApiError("secrets is forbidden", 403)
        return self.there.get(name)

    async def apply(self, document: KubeObject, *, force: bool = False) -> KubeObject:
        self.applied.append(document)
        made = document | ({"status": READY} if document["kind"] == "Pod" else {})
        if document["kind"] == "Service":
            made |= {"spec": document["spec"] | {"clusterIP": "10.96.0.1"}}
        self.there[name_of(document)] = made
        return made

    async def log(self, pod: ObjectName) -> str:
        asked: list[Any] = json.loads(self.there[pod]["spec"]["containers"][0]["command"][-1])
        return "\n".join(
            json.dumps({"number": number, "good": True, "heard": wanted}) for number, (_, wanted) in enumerate(asked)
        )


def made(cluster: Cluster, kind: str) -> list[KubeObject]:
    return [each for each in cluster.applied if each["kind"] == kind]


@pytest.mark.parametrize("by", ["pods", "account", "nothing"])
def test_its_pods_get_their_image_by_what_the_agents_get_theirs(by: str) -> None:
    cluster = Cluster(by=by)
    found = asyncio.run(Connectivity(cluster, lambda _: None).run())
    assert {each.state for each in found} == {"ok"}
    copied = [(each["metadata"]["name"], each["type"]) for each in made(cluster, "Secret")]
    assert copied == ([] if by == "nothing" else [(KEYS, "kubernetes.io/dockerconfigjson")])
    (namespace,) = made(cluster, "Namespace")
    where = {each["metadata"]["namespace"] for each in cluster.applied if each["kind"] != "Namespace"}
    assert where == {namespace["metadata"]["name"]}
    pulled = {json.dumps(each["spec"]["imagePullSecrets"]) for each in made(cluster, "Pod")}
    assert pulled == {json.dumps([] if by == "nothing" else [{"name": KEYS}])}


@pytest.mark.parametrize(("secret", "forbidden", "said"), [(False, False, False), (True, True, True)])
def test_a_pull_secret_that_cannot_be_had_ends_nothing(secret: bool, forbidden: bool, said: bool) -> None:
    """Input: it is not there; it may not be read. Verdict: the nodes may have the image; the second is told."""
    cluster = Cluster(by="pods", secret=secret, forbidden=forbidden)
    words: list[str] = []
    found = asyncio.run(Connectivity(cluster, words.append).run())
    assert {each.state for each in found} == {"ok"}
    assert made(cluster, "Secret") == []
    assert any("cannot be copied" in each for each in words) == said


def test_its_namespace_is_restricted_whatever_the_cluster_makes_of_others() -> None:
    cluster = Cluster(by="nothing")
    asyncio.run(Connectivity(cluster, lambda _: None).run())
    (namespace,) = made(cluster, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
