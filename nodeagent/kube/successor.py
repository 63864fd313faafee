"""Whether another agent is on its way to this node, which will take it over.

While a DaemonSet with ``maxSurge`` is rolled out, the controller makes the new pod first, and tells the
old one to end once the new one is ready, or as soon as the old one's readiness probe failed (Kubernetes,
``pkg/controller/daemon/daemon_controller.go: podsShouldBeOnNode``). On a machine that is starved that is
before the new one has even begun: who ended then would leave the node to nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.resources.objects import Owner, PodObject
from nodeagent.vocabulary import PodUid


def is_coming(own: PodUid, pods: Mapping[PodUid, PodObject]) -> bool:
    """Say whether one of *pods*, which are this node's, is the successor of the agent's *own* pod: of the
    same DaemonSet, made later, and neither ended nor told to end.
    """
    mine = pods.get(own)
    maker = _maker(mine) if mine is not None else None
    if mine is None or maker is None:
        return False
    return any(
        pod.namespace == mine.namespace
        and _maker(pod) == maker
        and pod.created >= mine.created
        and not pod.terminating
        and pod.phase in ("Pending", "Running")
        for uid, pod in pods.items()
        if uid != own
    )


def _maker(pod: PodObject) -> Owner | None:
    return next((owner for owner in pod.owners if owner.controller), None)
