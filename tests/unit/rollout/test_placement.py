"""Agents in another namespace than the manifests': what is found of them, and which names are wrong then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ControlError
from nodeagent.kube.client import KubeClient
from nodeagent.kube.kinds import FOLLOWED, WatchedKind
from nodeagent.rollout import manifests
from nodeagent.rollout.check import ClusterCheck, ClusterFinding
from nodeagent.rollout.remove import Removal
from nodeagent.rollout.resources import ClusterObjects
from tests.fakes.kube_api import FakeKubeApi
from tests.waiting import DEADLINE

DAEMONSET = Path(__file__).parents[3] / "daemonset"
KINDS = (
    *FOLLOWED,
    WatchedKind("DaemonSet", "apps", ("v1",), "daemonsets"),
    WatchedKind("Deployment", "apps", ("v1",), "deployments"),
    WatchedKind("ConfigMap", "", ("v1",), "configmaps"),
    WatchedKind("ValidatingAdmissionPolicy", "admissionregistration.k8s.io", ("v1",), "validatingadmissionpolicies"),
)
LABELS = {"app.kubernetes.io/part-of": "nodeagent"}
Document = dict[str, Any]
Scene = Callable[[FakeKubeApi, ClusterObjects], Awaitable[None]]


def play(folder: Path, scene: Scene) -> None:
    async def main() -> None:
        api = FakeKubeApi(folder, KINDS)
        try:
            await asyncio.wait_for(scene(api, ClusterObjects(KubeClient(await api.start()))), DEADLINE)
        finally:
            await api.stop()

    asyncio.run(main())


def installation(namespace: str, account: str, named: str) -> list[Document]:
    """Return what a kustomization with *namespace* makes of the manifests, in whose texts *named* stands."""
    own, slash = named.replace("/", ":"), named
    (policy, _) = manifests.load(DAEMONSET / "base" / "own-node.yaml")
    for each in policy["spec"]["matchConditions"]:
        each["expression"] = each["expression"].replace("nodeagent-system:nodeagent", own)
    content = (DAEMONSET / "ca" / "ca.yaml").read_text().replace("[nodeagent-system/nodeagent]", f"[{slash}]")
    pod = {"serviceAccountName": account, "containers": [{"name": "agent", "image": "a"}]}
    volumes = [{"name": "config", "configMap": {"name": "nodeagent-ca-config-f00"}}, {"name": "run", "emptyDir": {}}]
    where = {"namespace": namespace}
    return [
        policy,
        _object("v1", "ConfigMap", {"name": "nodeagent-ca-config-f00", **where}, data={"ca.yaml": content}),
        _object("apps/v1", "Deployment", {"name": "nodeagent-ca", **where}, volumes=volumes),
        _object("apps/v1", "DaemonSet", {"name": "nodeagent", **where}, **pod),
    ]


def _object(version: str, kind: str, metadata: Document, data: Document | None = None, **spec: Any) -> Document:
    body = {"data": data} if data is not None else {"spec": {"template": {"spec": spec}, "selector": {}}}
    return {"apiVersion": version, "kind": kind, "metadata": {"labels": LABELS, **metadata}, **body}


def states(found: list[ClusterFinding]) -> dict[str, str]:
    return {each.feature: each.state for each in found}


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(
    ("namespace", "account", "named", "state"),
    [
        ("nodeagent-system", "nodeagent", "nodeagent-system/nodeagent", "ok"),
        ("mesh", "nodeagent", "nodeagent-system/nodeagent", "missing"),
        ("mesh", "nodeagent", "mesh/nodeagent", "ok"),
        ("nodeagent-system", "other", "nodeagent-system/nodeagent", "missing"),
        ("nodeagent-system", "other", "nodeagent-system/other", "ok"),
        ("mesh", "agent", "mesh/nodeagent", "missing"),
    ],
)
def test_names_that_no_kustomization_changes_are_compared(
    tmp_path: Path, namespace: str, account: str, named: str, state: str, applied: bool
) -> None:
    """Verdict: as they are applied, and before that."""

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        documents = installation(namespace, account, named)
        for each in documents if applied else ():
            api.put(each)
        check = ClusterCheck(objects, [] if applied else documents, seconds=1)
        found = await check.run()
        assert [states(found)[feature] for feature in ("own node", "authority's agents")] == [state, state], found
        wrong = [each.detail for each in found if each.feature in ("own node", "authority's agents")]
        assert all(f"{namespace}" in each and f"{account}" in each for each in wrong)

    play(tmp_path, scene)


def test_a_namespace_that_a_kustomize_writes_on_what_has_none_hides_nothing(tmp_path: Path) -> None:
    """Input: as an older kubectl renders it, which does not know the kind. Verdict: it is there."""

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        documents = installation("nodeagent-system", "nodeagent", "nodeagent-system/nodeagent")
        for each in documents:
            if each["kind"] == "ValidatingAdmissionPolicy":
                each["metadata"]["namespace"] = "nodeagent-system"
                assert str(manifests.name_of(each)) == f"ValidatingAdmissionPolicy {each['metadata']['name']}"
        assert states(await ClusterCheck(objects, documents, seconds=1).run())["own node"] == "ok"

    play(tmp_path, scene)


def test_without_a_policy_that_bounds_agents_something_is_lost(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        api.put(installation("nodeagent-system", "nodeagent", "nodeagent-system/nodeagent")[-1])
        found = states(await ClusterCheck(objects, [], seconds=1).run())
        assert found["own node"] == "absent"
        assert "authority's agents" not in found, "the mesh has another authority"

    play(tmp_path, scene)


def test_what_cannot_be_looked_at_keeps_nothing_else_from_it(tmp_path: Path) -> None:
    """Input: nobody may see Nodes, or DaemonSets. Verdict: that is said, and the rest too."""

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        for each in installation("nodeagent-system", "nodeagent", "nodeagent-system/nodeagent"):
            api.put(each)
        for plural, feature in (("nodes", "nodes"), ("daemonsets", "place")):
            api.forbidden = {plural}
            found = {each.feature: each for each in await ClusterCheck(objects, [], seconds=1).run()}
            assert (found[feature].state, found["own node"].state) == ("missing", "ok")
            assert f"{plural} is forbidden" in found[feature].detail

    play(tmp_path, scene)


def test_a_namespace_that_is_not_the_agents_is_not_removed_with_them(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        for each in installation("shop", "nodeagent", "shop/nodeagent"):
            api.put(each)
        api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}})
        before = dict(api.objects)
        removal = Removal(objects, lambda _: None, seconds=1)
        with pytest.raises(ControlError, match="the agents are in Namespace shop, which is not theirs alone"):
            await removal.run([], nodes=True, policies=False, volumes=False)
        assert api.objects == before

    play(tmp_path, scene)
