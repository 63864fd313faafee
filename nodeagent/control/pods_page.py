"""The captured pods, at the admin port: what enrolment says of each, with its connections, how it is
reached and by which paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from nodeagent.config import DeliverySetting
from nodeagent.control.flows import FlowRow
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, Entry, Workload
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
    ) -> None:
        """*entries*: the snapshot's, by key. *paths*: of each port of a pod, in words. *setting*:
        ``redirect.delivery``.
        """
        self._pods = pods
        self._flows = flows
        self._entries = entries
        self._paths = paths
        self._setting = setting

    def routes(self) -> Routes:
        """The one page."""
        return {("GET", "/pods"): self._page}

    async def _page(self, query: Mapping[str, str]) -> Response:
        flows = await self._flows.live()
        rows = self._pods.rows()
        for row in rows:
            uid = PodUid(str(row["uid"]))
            row["connections"] = sum(1 for flow in flows if not flow["closed"] and flow["pod"] == uid)
            row["delivery"] = self._delivery(uid)
            row["paths"] = {str(port): path for port, path in self._paths(uid).items()}
        return Response.json(rows)

    def _delivery(self, uid: PodUid) -> str:
        """Return how a pod is reached from others of the node that no NetworkPolicy selects, and why."""
        entries = self._entries()
        workload = entries.get(f"workload/{uid}")
        if not isinstance(workload, Workload):
            return ""
        return str(delivery(self._setting, None, workload, entries.get(UNREAD)))
