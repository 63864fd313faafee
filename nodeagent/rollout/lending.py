"""What pods need that are tried before an installation, and after one that is to be changed: the cluster
is lent it, and is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from nodeagent.errors import NodeagentError
from nodeagent.kube.access import KubeObject
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.progress import waited
from nodeagent.rollout.resources import ClusterObjects

TRIED: Final = "-check"
"""How the names end of what stands in for something that may be there already, and say something else."""


@asynccontextmanager
async def lent(
    objects: ClusterObjects, documents: Sequence[KubeObject], namespace: str, template: KubeObject, seconds: float
) -> AsyncIterator[KubeObject]:
    """Within, the cluster has what pods of *template* in *namespace* need of *documents*: namespaces, accounts and pull
    secrets that are not there, and the ConfigMaps that *template* mounts, whatever is there under their names. Yield
    the template by which pods get these. Afterwards what was made is removed, and a namespace waited for at most
    *seconds*.

    Raises ConfigError, ControlError, ApiError.
    """
    made: list[ObjectName] = []
    own: KubeObject = copy.deepcopy(template)
    mounts = [volume["configMap"] for volume in own["spec"].get("volumes") or () if "configMap" in volume]
    pulled = set(pull_secrets(own["spec"], None))
    for document in documents:
        if name_of(document).kind == "ServiceAccount" and name_of(document).namespace == namespace:
            pulled.update(pull_secrets(own["spec"], document))
    secrets = {ObjectName("v1", "Secret", namespace, each) for each in pulled}
    try:
        for document in documents:
            name = name_of(document)
            asked = [mount for mount in mounts if name == ObjectName("v1", "ConfigMap", namespace, mount.get("name"))]
            if asked:
                name = replace(name, name=f"{name.name}{TRIED}")
            elif not _is_lent(name, secrets) or await objects.get(name) is not None:
                continue
            made.append(name)
            await objects.apply(document | {"metadata": document["metadata"] | {"name": name.name}}, force=True)
            for mount in asked:
                mount["name"] = name.name
        yield own
    finally:
        for name in reversed(made):
            with suppress(NodeagentError):
                await objects.delete(name)
                if name.kind == "Namespace":  # an installation would wait for it, too
                    await waited(partial(objects.remains, name), lambda _: None, seconds, str(name))


def pull_secrets(spec: KubeObject, account: KubeObject | None) -> list[str]:
    """Return the names of the Secrets by which images of pods as *spec* are pulled: their own, or else those of their
    *account*, as the API server gives them to a pod that names none.
    """
    own = spec.get("imagePullSecrets") or (account or {}).get("imagePullSecrets") or ()
    return [each["name"] for each in own]


def _is_lent(name: ObjectName, secrets: Collection[ObjectName]) -> bool:
    return name.kind in ("Namespace", "ServiceAccount") or name in secrets
