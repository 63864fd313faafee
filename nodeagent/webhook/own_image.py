"""Which image this webhook runs in: injected pods begin with it, unless webhook.yaml names another. So what
a kustomization, or who mirrors images, makes of the Deployment's is the injected pods' too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nodeagent.errors import ConfigError
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import KubeClient

POD_NAME: Final = "POD_NAME"
POD_NAMESPACE: Final = "POD_NAMESPACE"
"""Variables by which the manifest tells the webhook its own pod."""
CONTAINER: Final = "webhook"
RULE: Final = '{apiGroups: [""], resources: [pods], verbs: [get]}'
NAMED: Final = "initImage"
"""The value that names another."""


async def own_image(client: KubeClient, values: Mapping[str, object], environment: Mapping[str, str]) -> str:
    """Return the image of the pod that *environment* names; empty: *values* name one, or this is no pod's. Raises
    ConfigError where it cannot be told.
    """
    name = environment.get(POD_NAME, "")
    namespace = environment.get(POD_NAMESPACE, "")
    if NAMED in values or not (name and namespace):
        return ""
    try:
        pod = await client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    except ApiError as error:
        raise ConfigError(
            f"injection.values.{NAMED}: absent, and the image of this pod, {namespace}/{name}, cannot be asked for: "
            f"{error}; name one, or give the webhook's Role the rule {RULE}"
        ) from None
    return str(_container(pod)["image"])


def _container(pod: KubeObject) -> KubeObject:
    containers: list[KubeObject] = pod["spec"]["containers"]
    return next((each for each in containers if each["name"] == CONTAINER), containers[0])
