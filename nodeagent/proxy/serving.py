"""What a worker serves once control has told it how: the proxy, the pods' listeners, sockets and
certificates, and what is told of them. The order of control's messages is ``worker.py``'s business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Final

import orjson

from nodeagent.channel import MESSAGE_BYTES
from nodeagent.config import AgentConfig
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.tls import Contexts, contexts
from nodeagent.messages import (
    CertificateIssued,
    Counted,
    FlowRows,
    FromWorker,
    Listen,
    NeedSockets,
    NextOriginals,
    PodCaptured,
    PodReleased,
    SocketsMade,
    StartWorker,
)
from nodeagent.proxy.context import Context
from nodeagent.proxy.originals import Captured, Originals
from nodeagent.proxy.pace import Pace
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.proxy import Proxy
from nodeagent.redirect.delivery import Announcements
from nodeagent.redirect.original import OriginalDestinations
from nodeagent.telemetry.access_log import AccessLog
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.metrics import BUSY_POLL, DRAIN_CUT, LOG_DROPPED, LOOP_LAG, OPEN_CONNECTIONS
from nodeagent.vocabulary import Direction, Family
from nodeagent.wire import Unchecked

CUT_NAMED: Final = 50
"""Connections that are named at the end of a drain; more are only counted."""
FLOW_BYTES: Final = MESSAGE_BYTES - 1000
"""Of rows in one message: a packet's, but for the message around them."""


log = logging.getLogger("nodeagent.worker")


class Serving:
    """One worker's. *name* is what its metrics call it; *send* tells control something."""

    def __init__(self, name: str, proxy: Proxy, originals: Originals, send: Callable[[FromWorker], None]) -> None:
        self.proxy = proxy
        self._name = name
        self._originals = originals
        self._send = send
        self._contexts: dict[str, Contexts] = {}
        """By identity: of pods that are here, and of those that are about to be."""
        self._servers: dict[str, list[asyncio.Server]] = {}
        self._listening = True
        self._dropped = 0
        """Log records whose loss was counted."""

    @classmethod
    def of(cls, message: StartWorker, loop: asyncio.AbstractEventLoop, send: Callable[[FromWorker], None]) -> Serving:
        """Return what *message* asks for, with its access log open. Raises ValueError for a configuration that is
        none, OSError.
        """
        config = AgentConfig.model_validate(message.config)
        access_log = None
        if config.telemetry.access_log.path:
            access_log = AccessLog(config.telemetry.access_log.path, config.telemetry.access_log.format)
            access_log.start()
        context = Context(
            loop=loop,
            settings=config.proxy,
            mesh=config.mesh_settings(),
            cluster_id=config.cluster,
            metrics=WorkerMetrics(),
            access_log=access_log,
            delivery=config.redirect.delivery,
            share=1 / config.proxy.worker_count(),
            announce=Announcements(message.announced).put,
            node_addresses=frozenset(message.node_addresses),
        )
        originals = Captured(OriginalDestinations(message.originals))
        return cls(str(message.slot), Proxy(context, config.extension_providers), originals, send)

    def close(self) -> None:
        """Flush what is left before the process ends."""
        if self.proxy.context.access_log is not None:
            self.proxy.context.access_log.close()

    # -- pods --

    def certificate(self, message: CertificateIssued) -> None:
        """Show it from the next handshake on."""
        certificate = Certificate.from_json(message.certificate)
        settings = self.proxy.context.settings
        fresh = self._contexts[certificate.identity] = contexts(
            certificate, shared=settings.shared_connections, hbone=settings.hbone
        )
        for pod in self.proxy.context.pods.values():
            if pod.identity == certificate.identity:
                pod.certify(fresh)
                self.proxy.revocation.renewed(pod)

    def captured(self, message: PodCaptured) -> None:
        """Serve a pod, whose listeners follow; of one that is known they were opened anew."""
        uid = message.uid
        if uid in self.proxy.context.pods:
            self._close_listeners(uid)
            return

        def ask(family: Family, count: int) -> None:
            self._send(NeedSockets(uid, family, count))

        pod = PodState(uid, message.cookie, message.identity, ask)
        pod.certify(self._contexts.get(pod.identity))
        self.proxy.enrol(pod)

    def listen(self, message: Listen) -> Coroutine[object, object, None] | None:
        """Return what takes connections from a listener of a pod, for the pod as it is now; None
        where nobody takes any: the listener is closed.
        """
        listener = socket.socket(fileno=message.listener)
        pod = self.proxy.context.pods.get(message.uid)
        if pod is None or not self._listening:
            listener.close()
            return None
        servers = self._servers.setdefault(pod.uid, [])
        return self._listen(listener, pod, message.direction, servers)

    async def _listen(
        self, listener: socket.socket, pod: PodState, direction: Direction, servers: list[asyncio.Server]
    ) -> None:
        """*servers*: the pod's; others by the time that *listener* is served: it was closed with these."""
        server = await self.proxy.listen(listener, pod, direction, self._originals)
        if self._servers.get(pod.uid) is servers:
            servers.append(server)
        else:
            server.close()

    def next_originals(self, message: NextOriginals) -> None:
        """The programs of a daemon that takes the node over tell there whom connections asked for."""
        if isinstance(self._originals, Captured):
            self._originals.also(OriginalDestinations(message.originals))

    def released(self, message: PodReleased) -> None:
        """The pod is no longer enrolled: what it holds goes on, nothing new comes."""
        self._close_listeners(message.uid)
        pod = self.proxy.release(message.uid)
        if pod is not None:
            for stock in pod.stock.values():
                stock.close()

    def sockets(self, message: SocketsMade) -> None:
        """Put what control made into the pod's stock; none: it could not make any."""
        pod = self.proxy.context.pods.get(message.uid)
        made = [socket.socket(fileno=descriptor) for descriptor in message.sockets]
        if pod is None:
            for unused in made:
                unused.close()
            return
        stock = pod.stock[message.family]
        if made:
            stock.add(made)
        else:
            stock.refused()

    def ask_again(self) -> None:
        """Ask for the sockets that are wanted: who was asked may have died before it gave them."""
        for pod in self.proxy.context.pods.values():
            for stock in pod.stock.values():
                stock.again()

    def stop_listening(self) -> None:
        """Take no connection any more."""
        self._listening = False
        for uid in list(self._servers):
            self._close_listeners(uid)

    def _close_listeners(self, uid: str) -> None:
        for server in self._servers.pop(uid, []):
            server.close()

    # -- what is told --

    def report(self, lag: float) -> None:
        """Tell control what was counted; *lag*: the longest time, in seconds, that the loop was late since the last."""
        context = self.proxy.context
        metrics = context.metrics
        access_log = context.access_log
        if access_log is not None and access_log.dropped > self._dropped:
            metrics.count(LOG_DROPPED, (), access_log.dropped - self._dropped)
            self._dropped = access_log.dropped
        metrics.gauge(LOOP_LAG, (self._name,), lag)
        metrics.gauge(BUSY_POLL, (self._name,), context.busy_poll.share())
        metrics.gauge(OPEN_CONNECTIONS, (self._name,), len(context.connections) - context.outer)
        for part in metrics.delta():
            self._send(Counted(part))

    def cut(self) -> None:
        """Count and name the connections that are open though the time to drain is over; their end is the process's."""
        context = self.proxy.context
        left = [each for each in context.connections.values() if each.carriage is None or not each.carriage.outer]
        context.metrics.count(DRAIN_CUT, (), len(left))
        for connection in left[:CUT_NAMED]:
            row = connection.flow(os.getpid())
            log.warning(
                "the time to drain is over: cut is the %s connection of pod %s from %s to %s, open for %.0f s",
                row["protocol"] or "TCP",
                row["pod"],
                row["source"],
                row["destination"],
                time.time() - connection.wall,
            )
        if len(left) > CUT_NAMED:
            log.warning("and %d more", len(left) - CUT_NAMED)

    async def tell_flows(self, number: int) -> None:
        """Answer question *number* with live and recent connections, in parts that fit a packet: these may be many."""
        pace = Pace()
        context = self.proxy.context
        rows: list[Unchecked] = []
        size = 0
        for connection in [*context.recent, *context.connections.values()]:
            await pace.keep()
            row = connection.flow(os.getpid())
            length = len(orjson.dumps(row)) + 1
            if rows and size + length > FLOW_BYTES:
                self._send(FlowRows(number, rows, more=True))
                rows = []
                size = 0
            rows.append(row)
            size += length
        self._send(FlowRows(number, rows, more=False))
