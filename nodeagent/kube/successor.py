"""Whether another agent is on its way to this node, which will take it over.

While a DaemonSet with ``maxSurge`` is rolled out, the controller makes the new pod first, and tells the
old one to end once the new one is ready, or as soon as the old one's readiness probe failed (Kubernetes,
``pkg/controller/daemon/daemon_controller.go: podsShouldBeOnNode``). On a machine that is starved that is
before the new one has even begun: who ended then would leave the node to nobody.

Nor does the controller make a pod where one is that ends yet, nor where the old one is the right one again
(``kubectl rollout undo``). So one that drains keeps its node without an agent when the one that took over is
gone, and has to hurry (:func:`is_forsaken`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nodeagent.resources.objects import Owner, PodObject
from nodeagent.vocabulary import PodUid


def is_coming(own: PodUid, pods: Mapping[PodUid, PodObject]) -> bool:
    """Say whether one of *pods*, which are this node's, is the successor of the agent's *own* pod: of the
    same DaemonSet, made later, and neither ended nor told to end.
    """
    mine = pods.get(own)
    return mine is not None and any(pod.created >= mine.created for pod in _siblings(own, pods))


def is_forsaken(own: PodUid, pods: Mapping[PodUid, PodObject], *, came: bool) -> bool:
    """Say whether no other agent of the *own* pod's DaemonSet is among *pods*, which are this node's, or will be as
    long as the own one is there: it was told to end, or its successor *came* and is gone.
    """
    mine = pods.get(own)
    if mine is None or _maker(mine) is None:
        return False
    return (mine.terminating or came) and not any(_siblings(own, pods))


def _siblings(own: PodUid, pods: Mapping[PodUid, PodObject]) -> Iterator[PodObject]:
    """Yield the other pods of the *own* one's DaemonSet that have neither ended nor been told to."""
    mine = pods.get(own)
    maker = _maker(mine) if mine is not None else None
    if mine is None or maker is None:
        return
    for uid, pod in pods.items():
        alike = uid != own and pod.namespace == mine.namespace and _maker(pod) == maker
        if alike and not pod.terminating and pod.phase in ("Pending", "Running"):
            yield pod


def _maker(pod: PodObject) -> Owner | None:
    return next((owner for owner in pod.owners if owner.controller), None)
