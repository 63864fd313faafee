"""What a trial lends a cluster, and that it takes it back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nodeagent.errors import ControlError
from nodeagent.kube.access import KubeObject
from nodeagent.rollout.lending import lent
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.resources import ClusterObjects

WHERE = "nodeagent-system"
TEMPLATE = {
    "spec": {"volumes": [{"name": "config", "configMap": {"name": "nodeagent", "optional": True}}, {"name": "tmp"}]}
}


class Cluster(ClusterObjects):
    """Objects by name."""

    def __init__(self, *documents: KubeObject) -> None:
        self.there = {name_of(document): document for document in documents}

    async def get(self, name: ObjectName) -> KubeObject | None:
        return self.there.get(name)

    async def apply(self, document: KubeObject, *, force: bool = False) -> KubeObject:
        self.there[name_of(document)] = document
        return document

    async def delete(self, name: ObjectName, *, grace: int | None = None) -> bool:
        return self.there.pop(name, None) is not None

    async def remains(self, name: ObjectName) -> str:
        return "it is there" if name in self.there else ""


def document(kind: str, name: str, **rest: Any) -> KubeObject:
    where = {} if kind == "Namespace" else {"namespace": WHERE}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **where}, **rest}


NAMESPACE = document("Namespace", WHERE)
ACCOUNT = document("ServiceAccount", "nodeagent")
NEW = document("ConfigMap", "nodeagent", data={"agent.yaml": "new"})
OLD = document("ConfigMap", "nodeagent", data={"agent.yaml": "old"})
OTHER = document("ConfigMap", "another")
WANTED = (NAMESPACE, ACCOUNT, NEW, OTHER, document("Secret", "keys"))


@pytest.mark.parametrize("before", [(), (NAMESPACE,), (NAMESPACE, ACCOUNT, OLD)])
@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_reads_what_is_to_be_applied_and_leaves_the_cluster_as_it_was(
    before: tuple[KubeObject, ...], fails: bool
) -> None:
    """Input: nothing is there; a namespace that somebody made; an earlier installation with another agent.yaml."""

    async def scene() -> None:
        cluster = Cluster(*before)
        try:
            async with lent(cluster, WANTED, WHERE, TEMPLATE, 1) as template:
                mounted = template["spec"]["volumes"][0]["configMap"]["name"]
                assert cluster.there[ObjectName("v1", "ConfigMap", WHERE, mounted)]["data"] == {"agent.yaml": "new"}
                assert {name_of(NAMESPACE), name_of(ACCOUNT)} <= cluster.there.keys()
                assert name_of(OTHER) not in cluster.there
                assert OLD not in before or cluster.there[name_of(OLD)] == OLD, "what runs goes on with its own"
                if fails:
                    raise ControlError("a node does not answer")
        except ControlError:
            assert fails
        assert list(cluster.there.values()) == list(before)

    asyncio.run(scene())


@pytest.mark.parametrize("by", ["template", "account"])
def test_what_the_image_is_pulled_by_is_lent_too(by: str) -> None:
    pulling = {"imagePullSecrets": [{"name": "keys"}]}
    account = ACCOUNT | (pulling if by == "account" else {})
    template = {"spec": TEMPLATE["spec"] | (pulling if by == "template" else {})}
    keys = document("Secret", "keys", type="kubernetes.io/dockerconfigjson")

    async def scene() -> None:
        cluster = Cluster()
        async with lent(cluster, (NAMESPACE, account, keys, document("Secret", "other")), WHERE, template, 1):
            there = {name.name for name in cluster.there if name.kind == "Secret"}
            assert there == {"keys"}
        assert not cluster.there

    asyncio.run(scene())


def test_what_has_such_a_name_in_another_namespace_is_not_lent() -> None:
    """Input: a Secret and a ConfigMap with the names of the agents', and an account that pulls by another Secret, all
    of another namespace; the Secrets of both names. Verdict: only what pods of the agents' namespace can have.
    """

    def elsewhere(given: KubeObject) -> KubeObject:
        return given | {"metadata": given["metadata"] | {"namespace": "logs"}}

    keys = document("Secret", "keys", type="kubernetes.io/dockerconfigjson")
    others = document("Secret", "others", type="kubernetes.io/dockerconfigjson")
    account = ACCOUNT | {"imagePullSecrets": [{"name": "keys"}]}
    stranger = elsewhere(ACCOUNT | {"imagePullSecrets": [{"name": "others"}]})
    wanted = (NAMESPACE, account, stranger, keys, elsewhere(keys), others, NEW, elsewhere(OLD))

    async def scene() -> None:
        cluster = Cluster(NAMESPACE)
        async with lent(cluster, wanted, WHERE, TEMPLATE, 1) as template:
            there = [name for name in cluster.there if name.kind in ("Secret", "ConfigMap")]
            assert there == [name_of(keys), ObjectName("v1", "ConfigMap", WHERE, "nodeagent-check")]
            mounted = template["spec"]["volumes"][0]["configMap"]["name"]
            assert cluster.there[ObjectName("v1", "ConfigMap", WHERE, mounted)]["data"] == {"agent.yaml": "new"}

    asyncio.run(scene())


def test_what_is_installed_is_tried_as_it_is() -> None:
    async def scene() -> None:
        cluster = Cluster(NAMESPACE, OLD)
        async with lent(cluster, (), WHERE, TEMPLATE, 1) as template:
            assert template == TEMPLATE
            assert len(cluster.there) == 2

    asyncio.run(scene())
