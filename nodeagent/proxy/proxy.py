"""One whole proxy, composed here and nowhere else: a worker's, a sidecar's, and that of the unit tests.

    listener ──▶ Accepted ──▶ Pipeline ──▶ codec (http1/) ─▶ route ─▶ guard ─▶ pool ──▶ endpoint
                 accept.py    pipeline.py ─▶ Carrier (carry.py), which asks the same ─▶ endpoint

Each part gets the context and the parts that it uses, and is whole when it is made; only this
module knows the pipeline's class.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import partial
from typing import Final

from nodeagent.extension_providers import ExtensionProvider
from nodeagent.mesh.entries import Delta
from nodeagent.proxy.accept import Accepted, Entrance
from nodeagent.proxy.carry import Carrier
from nodeagent.proxy.context import Context
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.guards import Guards
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.originals import Originals
from nodeagent.proxy.pipeline import Pipeline
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.revocation import Revocation
from nodeagent.proxy.routing import Routing
from nodeagent.vocabulary import Direction

BACKLOG: Final = 4096
"""Connections that the kernel keeps for a listener until they are accepted (listen(2))."""


class Proxy:
    """Its parts that others use: ``context``, ``routing``, ``guards`` and ``revocation``."""

    def __init__(
        self, context: Context, providers: Iterable[ExtensionProvider] = (), dialler: PodState | None = None
    ) -> None:
        """*providers*: whom policies may ask (``extensionProviders`` of agent.yaml); by *dialler* if
        that is not the pod for which they are asked.
        """
        self.context = context
        self.routing = Routing(context)
        asked = Providers(providers, partial(self.routing.way_to, dialler=dialler))
        self.guards = Guards(context, asked)
        ledger = Ledger(context, self.routing)
        self.revocation = Revocation(context, self.routing, self.guards, ledger)
        carrier = Carrier(context, self.routing, self.guards, ledger, self.revocation)
        self.pipeline = Pipeline(context, self.routing, self.guards, ledger, carrier)
        self._entrance = Entrance(context, ledger, self.pipeline.begin)

    def accepted(self, pod: PodState, direction: Direction, originals: Originals) -> Accepted:
        """Return the protocol of a connection that a listener of *pod* accepts; *originals* tell whom it asked for."""
        return Accepted(self._entrance, pod, direction, originals)

    async def listen(
        self, listener: socket.socket, pod: PodState, direction: Direction, originals: Originals
    ) -> asyncio.Server:
        """Take connections from *listener* of *pod* until the server that is returned is closed."""

        def accepted() -> Accepted:
            return self.accepted(pod, direction, originals)

        # asyncio asks for its own class and calls no more than its methods
        return await self.context.loop.create_server(accepted, sock=listener, backlog=BACKLOG)  # type: ignore[arg-type]

    # -- what changes --

    def put(self, deltas: Iterable[Delta]) -> bool:
        """Put *deltas* in force for what comes from now on; say whether they may change verdicts on
        connections that are open: then :meth:`Revocation.reconsider` follows.
        """
        view = self.context.view
        before = view.protection
        for delta in deltas:
            view.apply(delta)
        if view.protection == before:
            return False
        self.guards.compiler.keep(view.policies())
        return True

    def enrol(self, pod: PodState) -> None:
        """Take *pod* in: it is of this node from now on."""
        self.context.pods[pod.uid] = pod
        self.context.view.generation += 1

    def release(self, uid: str) -> PodState | None:
        """Forget the pod *uid*, which is no longer enrolled; return what there was of it."""
        self.guards.forget(uid)
        self.context.recent.forget(uid)
        pod = self.context.pods.pop(uid, None)
        if pod is not None:
            pod.gone = True
            self.context.view.generation += 1
            self.revocation.released(pod)
        return pod

    def node_is(self, addresses: Iterable[str]) -> None:
        """The node has these *addresses* now; routes rest on them."""
        fresh = frozenset(addresses)
        if fresh == self.context.node_addresses:
            return  # a new generation costs every route
        self.context.node_addresses = fresh
        self.context.view.generation += 1
