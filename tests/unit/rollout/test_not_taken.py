"""What of a cluster nobody carries out: named once an object, from the versions that the cluster has."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from nodeagent.kube.access import ApiError
from nodeagent.kube.client import KubeClient
from nodeagent.rollout.check import ClusterCheck
from nodeagent.rollout.not_taken import TOLD, Loss, losses
from nodeagent.rollout.resources import ClusterObjects

ISTIO = "networking.istio.io"
KINDS = {
    "EnvoyFilter": "envoyfilters",
    "VirtualService": "virtualservices",
    "Sidecar": "sidecars",
    "Service": "services",
}


class Api:
    """A cluster with Istio's definitions: EnvoyFilter only in an older version, Sidecars forbidden."""

    def __init__(self, filters: int) -> None:
        named = [{"metadata": {"namespace": "shop", "name": f"limit{number:03}"}} for number in range(filters)]
        routes = [
            {"metadata": {"namespace": "shop", "name": "canary"}, "spec": {"hosts": ["web"]}},
            {"metadata": {"namespace": "shop", "name": "front"}, "spec": {"gateways": ["istio-system/front"]}},
        ]
        groups = [{"name": ISTIO, "versions": [{"groupVersion": f"{ISTIO}/{each}"} for each in ("v1", "v1alpha3")]}]
        services = [
            {"metadata": {"namespace": "shop", "name": "sticky"}, "spec": {"sessionAffinity": "ClientIP"}},
            {"metadata": {"namespace": "shop", "name": "near"}, "spec": {"trafficDistribution": "PreferClose"}},
            {"metadata": {"namespace": "shop", "name": "plain"}, "spec": {"sessionAffinity": "None"}},
        ]
        self.answers: dict[str, Any] = {
            "/api/v1": self._kinds("Service"),
            "/api/v1/services": {"items": services},
            "/apis": {"groups": [*groups, {"name": "apps"}]},
            f"/apis/{ISTIO}/v1": self._kinds("VirtualService", "Sidecar"),
            f"/apis/{ISTIO}/v1alpha3": self._kinds("EnvoyFilter", "VirtualService"),
            f"/apis/{ISTIO}/v1alpha3/envoyfilters": {"items": named},
            f"/apis/{ISTIO}/v1/virtualservices": {"items": routes},
        }
        self.asked: list[str] = []

    @staticmethod
    def _kinds(*kinds: str) -> Any:
        return {"resources": [{"kind": kind, "name": KINDS[kind], "namespaced": True} for kind in kinds]}

    async def get(self, path: str) -> Any:
        path = path.partition("?")[0]
        self.asked.append(path)
        if path.endswith("/sidecars"):
            raise ApiError("sidecars is forbidden", 403)
        return self.answers[path]


def objects(api: Api) -> ClusterObjects:
    return ClusterObjects(cast(KubeClient, api))


def test_each_object_is_named_and_what_cannot_be_listed_too() -> None:
    api = Api(1)
    limit, sidecars, canary, near, sticky = asyncio.run(losses(objects(api)))
    assert limit == Loss("EnvoyFilter shop/limit000", "its filters, such as rate limits, do not run")
    assert sidecars.subject == "Sidecar"
    assert "forbidden" in sidecars.words
    assert canary.subject == "VirtualService shop/canary"
    assert (near.subject, sticky.subject) == ("Service shop/near", "Service shop/sticky")
    assert not any("wasmplugins" in each for each in api.asked)


def test_very_many_are_counted() -> None:
    found = asyncio.run(losses(objects(Api(TOLD + 7))))
    assert [each for each in found if each.subject.startswith("EnvoyFilter")][-1].words.startswith("7 more: ")


def test_a_check_tells_them_and_does_not_fail_for_them() -> None:
    found = asyncio.run(ClusterCheck(objects(Api(1)), (), seconds=1)._not_taken())
    assert {each.state for each in found} == {"absent"}
    assert found[0].feature == "EnvoyFilter shop/limit000"
