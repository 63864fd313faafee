"""The pods of the node, at the admin port: what enrolment says of each captured one, with its
connections, how it is reached and by which paths; and, if asked for, why the others are none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Protocol

from nodeagent.config import DeliverySetting
from nodeagent.control.flows import FlowRow
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, Entry, Workload
from nodeagent.mesh.node_pods import NodePod
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.vocabulary import PodUid


class Rows(Protocol):
    """Who says how the pods are: ``Enrolment``."""

    def rows(self) -> list[dict[str, object]]:
        """Return a row a pod; its field ``uid`` is the pod's."""


class LiveFlows(Protocol):
    """Who knows the connections: ``Flows``."""

    async def live(self) -> list[FlowRow]:
        """Return those that are live."""


class PodsPage:
    """``nodeagent get pods``."""

    def __init__(
        self,
        pods: Rows,
        flows: LiveFlows,
        entries: Callable[[], Mapping[str, Entry]],
        paths: Callable[[PodUid], Mapping[int, str]],
        setting: DeliverySetting,
        decided: Iterable[NodePod],
        faults: Callable[[PodUid], list[str]] = lambda _: [],
    ) -> None:
        """*entries*: the snapshot's, by key. *paths*: of each port of a pod, in words. *setting*:
        ``redirect.delivery``. *decided*: the node's pods as they are, each time it is asked for.
        *faults*: what else is wrong with a pod than its capture.
        """
        self._pods = pods
        self._flows = flows
        self._entries = entries
        self._paths = paths
        self._setting = setting
        self._decided = decided
        self._faults = faults

    def routes(self) -> Routes:
        """The one page; ``all=true``: with the pods that are not captured."""
        return {("GET", "/pods"): self._page}

    async def _page(self, query: Mapping[str, str]) -> Response:
        flows = await self._flows.live()
        rows = self._pods.rows()
        decided = {each.uid: each for each in self._decided}
        for row in rows:
            uid = PodUid(str(row["uid"]))
            row["connections"] = sum(1 for flow in flows if not flow["closed"] and flow["pod"] == uid)
            row["delivery"] = self._delivery(uid)
            row["paths"] = {str(port): path for port, path in self._paths(uid).items()}
            known = decided.pop(uid, None)
            row["why"] = known.membership.why if known is not None else ""
        if query.get("all") == "true":
            rows += [_outside(each) for each in decided.values()]
        for row in rows:
            if more := self._faults(PodUid(str(row["uid"]))):
                found = row["faults"]
                row["faults"] = [*(found if isinstance(found, list) else ()), *more]
        return Response.json(rows)

    def _delivery(self, uid: PodUid) -> str:
        """Return how a pod is reached from others of the node that no NetworkPolicy selects, and why."""
        entries = self._entries()
        workload = entries.get(f"workload/{uid}")
        if not isinstance(workload, Workload):
            return ""
        return str(delivery(self._setting, None, workload, entries.get(UNREAD)))


def unreached(
    pods: Iterable[NodePod], known: Container[PodUid], faults: Callable[[PodUid], list[str]]
) -> Iterator[dict[str, object]]:
    """Yield rows of those of *pods*, beside the *known* ones, with which something is wrong: what they, or their
    Namespaces, say, and, by *faults*, why those that shall be captured cannot be (state ``failed``).
    """
    for pod in pods:
        if pod.uid in known:
            continue
        if pod.faults:
            yield _outside(pod)
        if pod.awaited and (why := faults(pod.uid)):
            yield {**_outside(pod), "state": "failed", "faults": why}


def _outside(pod: NodePod) -> dict[str, object]:
    """Return the row of a pod that is not captured, or not yet."""
    return {
        "pod": pod.pod,
        "namespace": pod.namespace,
        "uid": pod.uid,
        "addresses": list(pod.addresses),
        "identity": pod.identity or "",
        "state": pod.state,
        "why": pod.membership.why,
        "faults": list(pod.faults),
    }
