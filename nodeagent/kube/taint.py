"""The taint by which a new node gets no pods before its agent is there: who makes nodes puts it (a node
pool's setting, or the kubelet's ``--register-with-taints``), the agent takes it away.

It is taken away once the agent is ready, and again whenever it is there while the agent is: a pool may
put it later. The agent never puts it: pods that run would not be helped, an update would stop
scheduling, and a node that begins again has pods before any agent runs. What keeps those in bounds is
``redirect.unknownPods``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import MERGE, KubeClient
from nodeagent.kube.kinds import NODES
from nodeagent.kube.watch import Sleep

TAINT: Final = "nodeagent.io/agent-not-ready"
"""Its key; the effect is its maker's choice, and should be NoSchedule."""
LOOK_SECONDS: Final = 1.0
SELDOM_SECONDS: Final = 5.0
"""The same where it is not there: somebody may put it later."""
LONGEST_PAUSE: Final = 60.0
CONFLICT: Final = 409
log = logging.getLogger("nodeagent.kube")


class StartupTaint:
    """Takes the taint off *node* while *tainted* says that it is there and *missing* says that the
    agent lacks nothing.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        tainted: Callable[[], bool],
        missing: Callable[[], list[str]],
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._client = client
        self._node = node
        self._tainted = tainted
        self._missing = missing
        self._sleep = sleep

    async def keep(self) -> None:
        """Look, for ever; where it cannot be taken away that is said once for each reason."""
        pause = LOOK_SECONDS
        said = ""
        while True:
            await self._sleep(pause)
            if not self._tainted():
                pause = SELDOM_SECONDS
                continue
            if self._missing():
                pause = LOOK_SECONDS
                continue
            try:
                taken = await untaint(self._client, self._node)
                if taken:
                    log.info("the node's taint %s is taken away: the agent is ready", TAINT)
                # where there is none, what is known of the Node is old
                pause = LOOK_SECONDS if taken else min(2 * pause, LONGEST_PAUSE)
                said = ""
            except ApiError as error:
                pause = min(2 * pause, LONGEST_PAUSE)
                if said != str(error):
                    said = str(error)
                    log.error("the node's taint %s stays, and no pod comes here: %s%s", TAINT, error, _hint(error))


async def untaint(client: KubeClient, node: str) -> bool:
    """Take the taint off *node*; say whether it was there. Raises ApiError."""
    while True:
        found = await _node(client, node)
        taints = found.get("spec", {}).get("taints") or []
        left = [each for each in taints if each.get("key") != TAINT]
        if len(left) == len(taints):
            return False
        # Taints are replaced as a whole: not those that somebody has put meanwhile.
        version = found["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": {"taints": left}}
        try:
            await client.patch(f"{NODES.path('v1')}/{quote(node)}", patch, MERGE)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            continue
        return True


async def _node(client: KubeClient, node: str) -> KubeObject:
    """Return the Node, empty where there is none: by listing, which the agent may. Raises ApiError."""
    selector = quote(f"metadata.name={node}", safe="")
    items = (await client.get(f"{NODES.path('v1')}?fieldSelector={selector}")).get("items")
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def is_tainted(document: KubeObject) -> bool:
    """Say whether the Node *document* has the taint."""
    spec = document.get("spec")
    taints = spec.get("taints") if isinstance(spec, dict) else None
    return any(isinstance(each, dict) and each.get("key") == TAINT for each in taints or ())


def _hint(error: ApiError) -> str:
    if error.status != 403:
        return ""
    return '; the agent\'s ClusterRole wants the rule {apiGroups: [""], resources: [nodes], verbs: [patch]}'
