"""What pods need that are tried before an installation, and after one that is to be changed: the cluster
is lent it, and is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
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
    objects: ClusterObjects, documents: Sequence[KubeObject], template: KubeObject, seconds: float
) -> AsyncIterator[KubeObject]:
    """Within, the cluster has what pods of *template* need of *documents*: namespaces and accounts that are not there,
    and the ConfigMaps that *template* mounts, whatever is there under their names. Yield the template by which
    pods get these. Afterwards what was made is removed, and a namespace waited for at most *seconds*.

    Raises ConfigError, ControlError, ApiError.
    """
    made: list[ObjectName] = []
    own: KubeObject = copy.deepcopy(template)
    mounts = [volume["configMap"] for volume in own["spec"].get("volumes") or () if "configMap" in volume]
    try:
        for document in documents:
            name = name_of(document)
            asked = [mount for mount in mounts if name.kind == "ConfigMap" and mount.get("name") == name.name]
            if asked:
                name = replace(name, name=f"{name.name}{TRIED}")
            elif name.kind not in ("Namespace", "ServiceAccount") or await objects.get(name) is not None:
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
