"""Injected pods begin with the image of the webhook's own pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ConfigError
from nodeagent.inject import Injected, PodNamespace, inject
from nodeagent.kube.client import KubeClient
from nodeagent.webhook.own_image import RULE, own_image
from nodeagent.webhook.settings import Injection
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.kube.api_scene import play

OWN = "registry.example/mesh/nodeagent:own"
ENVIRONMENT = {"POD_NAME": "webhook-0", "POD_NAMESPACE": "system"}
POD = {
    "kind": "Pod",
    "metadata": {"name": "webhook-0", "namespace": "system"},
    "spec": {"containers": [{"name": "other", "image": "other:1"}, {"name": "webhook", "image": OWN}]},
}


@pytest.mark.parametrize(
    ("values", "environment", "found"),
    [
        ({}, ENVIRONMENT, OWN),
        ({"initImage": "another:1"}, ENVIRONMENT, ""),
        ({}, {}, ""),
        ({}, {"POD_NAME": "webhook-0"}, ""),
    ],
    ids=["its own", "named", "no pod", "half told"],
)
def test_it_is_its_pods_own_unless_one_is_named(
    tmp_path: Path, values: dict[str, Any], environment: dict[str, str], found: str
) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(POD)
        assert await own_image(client, values, environment) == found

    play(tmp_path, scene)


def test_where_it_cannot_be_asked_for_what_to_do_is_said(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.forbidden.add("pods")
        with pytest.raises(ConfigError) as raised:
            await own_image(client, {}, ENVIRONMENT)
        assert "injection.values.initImage: absent" in str(raised.value) and RULE in str(raised.value)

    play(tmp_path, scene)


@pytest.mark.parametrize("template", ["envoy", "nodeagent"])
@pytest.mark.parametrize("named", ["", "another:1"])
def test_injected_pods_begin_with_it(template: str, named: str) -> None:
    values: dict[str, object] = {"meshRanges": ["10.244.0.0/16"]}
    injection = Injection.model_validate(
        {"template": template, "values": values | ({"initImage": named} if named else {})}
    )
    pod = {
        "metadata": {"labels": {"sidecar.istio.io/inject": "true"}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    }
    found = inject(pod, PodNamespace("shop"), injection.settings(own_image=OWN))
    assert isinstance(found, Injected)
    (init,) = (each for each in found.pod["spec"]["initContainers"] if each["name"] == "istio-init")
    assert init["image"] == (named or OWN)
    (proxy,) = (each for each in found.pod["spec"]["containers"] if each["name"] == "istio-proxy")
    assert (proxy["image"] == OWN) == (template == "nodeagent")
