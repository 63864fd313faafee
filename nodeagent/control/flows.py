"""The connections that are live, and those that were, for ``nodeagent flows``: each is told once it is
new, and again when it has changed.
"""

from __future__ import annotations

import collections
import itertools
import logging
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from nodeagent.messages import AskFlows, AskMetrics
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.store import Store

FLOWS_KEPT: Final = 2000
"""Connections of which nobody tells any more."""
FlowRow = dict[str, Any]
"""A connection as JSON; the field ``id`` is its own."""
log = logging.getLogger("nodeagent.control")


class AsksWorkers(Protocol):
    """Who knows the connections through the proxy: ``Workers``."""

    async def ask(self, question: type[AskFlows] | type[AskMetrics]) -> list[FlowRow]:
        """Put *question* to all; return the rows of their answers."""


class KernelFlows(Protocol):
    """Who knows those on the kernel path: ``KernelPaths``."""

    def flows(self, store: Store) -> list[dict[str, object]]:
        """Return them. Raises OSError."""


class Flows:
    """Live connections, and a bounded number of past ones."""

    def __init__(self, workers: AsksWorkers, kernel: KernelFlows, store: Store) -> None:
        self._workers = workers
        self._kernel = kernel
        self._store = store
        self._sequence = itertools.count(1)
        self._seen: dict[str, tuple[int, FlowRow]] = {}

    def routes(self) -> Routes:
        """``nodeagent flows``."""
        return {("GET", "/flows"): self._page}

    async def live(self) -> list[FlowRow]:
        """Return those of the workers and of the kernel path."""
        flows = await self._workers.ask(AskFlows)
        try:
            return flows + self._kernel.flows(self._store)
        except OSError as error:
            log.error("connections on the kernel path cannot be listed: %s", error)
            return flows

    async def _page(self, query: Mapping[str, str]) -> Response:
        """Connections that are new or changed since the sequence number ``since``."""
        try:
            since = int(query.get("since", "0"))
        except ValueError:
            return Response(b"since: a whole number is expected\n", 400)
        told = {flow["id"]: flow for flow in await self.live()}
        for _, flow in self._seen.values():
            if not flow["closed"] and flow["id"] not in told:
                told[flow["id"]] = {**flow, "closed": time.time()}  # gone with its worker, or among too many others
        for flow in told.values():
            known = self._seen.get(flow["id"])
            if known is None or known[1] != flow:
                self._seen.pop(flow["id"], None)
                self._seen[flow["id"]] = (next(self._sequence), flow)
        self._forget(told)
        changed = [(number, flow) for number, flow in self._seen.values() if number > since]
        return Response.json(
            {"next": max((number for number, _ in changed), default=since), "flows": [flow for _, flow in changed]}
        )

    def _forget(self, told: Mapping[str, FlowRow]) -> None:
        """Keep a bounded number of what is told no more, shared evenly by the pods: a busy one pushes out its own."""
        past = [(key, flow["pod"]) for key, (_, flow) in self._seen.items() if key not in told]
        held = collections.Counter(pod for _, pod in past)
        surplus = len(past) - FLOWS_KEPT
        share = FLOWS_KEPT // (len(held) or 1)
        for key, pod in past if surplus > 0 else ():
            if held[pod] > share:
                held[pod] -= 1
                del self._seen[key]
