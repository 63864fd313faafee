"""Two nodes on loopback: a client's node and a server's, each a whole pipeline; mTLS between them
by a real authority.

Only the kernel's part is stood in for: the original destination is given, and the socket stock's
sockets reach the application where redirection would have left its port alone.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from nodeagent.config import ProxySettings
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import Contexts, contexts
from nodeagent.mesh.entries import DeclaredProbe, Delta, Protocol, Workload
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, Jwks, MtlsMode, RateLimit, RequestAuthentication
from nodeagent.proxy.client_guard import Surroundings
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.originals import Captured
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.pool import Pool
from nodeagent.proxy.proxy import Proxy
from nodeagent.redirect.original import Original
from nodeagent.vocabulary import Address, PodUid, SpiffeId
from tests.unit.proxy.stage import MESH, Handler, Log, context
from tests.waiting import DEADLINE, LOOK_SECONDS, until

CLIENT, SERVER, NODE, STRANGER = "127.0.0.3", "127.0.0.2", "127.0.0.9", "127.0.0.8"
"""Addresses of the client's pod, the server's pod, the server's node, and of somebody outside the mesh."""
Policy = AuthorizationPolicy | RequestAuthentication | RateLimit | Jwks
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def identity(pod: str) -> SpiffeId:
    return SpiffeId(f"spiffe://cluster.local/ns/default/sa/{pod}")


def credentials(directory: Path, *pods: str) -> dict[str, Contexts]:
    """Return TLS contexts for *pods* by an authority in *directory*."""
    authority = CertificateAuthority.open_or_create(directory, "cluster.local")
    return {pod: contexts(authority.issue(identity(pod), 3600), shared=True, hbone=True) for pod in pods}


def asks(proxy: Proxy, providers: Providers) -> None:
    """Have the policies of *proxy* ask *providers*."""
    proxy.guards.around = Surroundings(proxy.context.metrics, providers)


class PodSocket(socket.socket):
    """A socket of a pod: what it dials is looked up among *redirected* first."""

    redirected: dict[tuple[str, int], tuple[str, int]]

    def connect_ex(self, address: Any) -> int:
        return super().connect_ex(self.redirected.get(tuple(address[:2]), address))


class Originals:
    def __init__(self, to: tuple[str, int]) -> None:
        self.to = to

    def take(self, cookie: int, address: str, port: int) -> Original:
        return Original(*self.to, None)


class Nodes:
    """The client's node sends to the server's node; *reach* it through both (:meth:`connect`) or
    from outside (:meth:`dial`).
    """

    def __init__(
        self,
        app: Handler,
        tls: dict[str, Contexts],
        *,
        protocol: Protocol,
        mode: MtlsMode,
        probes: tuple[DeclaredProbe, ...],
        policies: tuple[Policy, ...],
        settings: dict[str, Any],
        mesh: MeshSettings = MESH,
    ) -> None:
        self._app, self._tls, self._protocol, self._mode, self._probes, self._policies = (
            app,
            tls,
            protocol,
            mode,
            probes,
            policies,
        )
        self._mesh = mesh
        timeouts = {"connect": DEADLINE, **settings.get("timeouts", {})}
        self._settings = ProxySettings.model_validate({**settings, "timeouts": timeouts})
        self._redirected: dict[tuple[str, int], tuple[str, int]] = {}
        self.outside: dict[tuple[str, int], tuple[str, int]] = {}
        """What the client's pod dials is elsewhere."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.app_connections = 0
        self.faults: list[str] = []
        self.near: Proxy
        self.far: Proxy

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        app = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 18, backlog=4096)
        self.near, client = self._node("client", CLIENT)
        self.far, server = self._node("server", "")
        self.far.context.node_addresses = frozenset((NODE,))
        inbound = await loop.create_server(
            lambda: self.far.accepted(server, "inbound", Captured(None)), SERVER, 0, backlog=4096
        )  # type: ignore[arg-type]
        self.port = inbound.sockets[0].getsockname()[1]
        self._redirected[SERVER, self.port] = app.sockets[0].getsockname()
        self.originals = Originals((SERVER, self.port))
        captured = Captured(self.originals)  # type: ignore[arg-type]
        outbound = await loop.create_server(
            lambda: self.near.accepted(client, "outbound", captured), "127.0.0.1", 0, backlog=4096
        )
        self.app, self._outbound = app, outbound.sockets[0].getsockname()
        self._servers = [app, inbound, outbound]
        self.publish()
        self._sweeper = loop.create_task(self._sweep())

    def publish(self) -> None:
        """Give both nodes the snapshot."""
        for proxy in (self.near, self.far):
            workloads = (
                self._workload("client", CLIENT, 1, ()),
                self._workload("server", SERVER, self.port, self._probes),
            )
            proxy.context.view.apply(Delta((*workloads, *(self._policies if proxy is self.far else ()))))

    async def protect(self, policies: tuple[Policy, ...], mode: MtlsMode = "PERMISSIVE") -> None:
        """Change what protects the server, as control would."""
        self._policies, self._mode = policies, mode
        self.publish()
        await self.far.revocation.reconsider()

    async def stop(self) -> None:
        """Close everything; nothing may be left, nor may the loop have seen an error."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await self.settled()
        for server in self._servers:
            server.close()
        self._sweeper.cancel()
        await asyncio.sleep(0)
        assert not self.faults, self.faults

    async def settled(self) -> None:
        """Wait until no connection, no request and no handler is left on either node; idle upstream
        connections are closed for it.
        """
        while any(proxy.context.connections for proxy in (self.near, self.far)) or self._tasks:
            for proxy in (self.near, self.far):
                proxy.routing.sweep(float("inf"), 0)
            await asyncio.sleep(LOOK_SECONDS)
        await until(lambda: not any(pool._own for pool in self._pools()), "no pool counts a connection")
        for proxy in (self.near, self.far):
            for pod in proxy.context.pods.values():
                assert pod.connections == 0
                assert not pod.open
                assert all(route.active == 0 for routes in pod.routes.values() for route in routes)

    def _pools(self) -> list[Pool]:
        return [*self.near.routing.pools(), *self.far.routing.pools()]

    async def connect(self) -> Streams:
        """Connect as the client's application does: captured, and mTLS between the nodes."""
        return self._kept(await asyncio.open_connection(*self._outbound, limit=1 << 18))

    async def dial(self, source: str = STRANGER, context: ssl.SSLContext | None = None) -> Streams:
        """Connect to the server's pod from *source*, which has no agent."""
        return self._kept(
            await asyncio.open_connection(
                SERVER,
                self.port,
                local_addr=(source, 0),
                ssl=context,
                server_hostname="" if context else None,
                limit=1 << 18,
            )
        )

    def refused(self, proxy: Proxy) -> list[str]:
        """Return the reasons for which connections were refused since the last call."""
        return [
            labels[0]
            for part in proxy.context.metrics.delta()
            for name, labels, _ in part.get("counts", ())
            if name == "nodeagent_refused_connections_total"
        ]

    def _kept(self, streams: Streams) -> Streams:
        self._writers.append(streams[1])
        return streams

    def _node(self, uid: str, source: str) -> tuple[Proxy, PodState]:
        proxy = Proxy(context(self._settings, Log(), self._mesh))

        def ask(family: Any, count: int) -> None:
            made = [PodSocket(socket.AF_INET) for _ in range(count)]
            for one in made:
                one.redirected = self.outside if source else self._redirected
                one.setblocking(False)
                if source:
                    one.bind((source, 0))
            asyncio.get_running_loop().call_soon(pod.stock[family].add, made)

        pod = proxy.context.pods[uid] = PodState(PodUid(uid), 1, identity(uid), ask)
        pod.tls = self._tls.get(uid)
        return proxy, pod

    def _workload(self, uid: str, address: str, port: int, probes: tuple[DeclaredProbe, ...]) -> Workload:
        return Workload(
            uid=PodUid(uid),
            pod=uid,
            namespace="default",
            node=uid,
            addresses=(Address(address),),
            service_account=uid,
            identity=identity(uid),
            workload=uid,
            app=uid,
            version="v1",
            canonical_service=uid,
            canonical_revision="v1",
            ready=True,
            enrolled=True,
            ports=((port, self._protocol),),
            probes=probes,
            mtls=self._mode if uid == "server" else "PERMISSIVE",
            policies=tuple(entry.key for entry in self._policies) if uid == "server" else (),
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.app_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._app(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _sweep(self) -> None:
        while True:
            self.near.revocation.sweep()
            self.far.revocation.sweep()
            await asyncio.sleep(0.05)  # the worker's own sweep, more often


def play(
    app: Handler,
    scene: Callable[[Nodes], Awaitable[None]],
    tls: dict[str, Contexts],
    *,
    protocol: Protocol = "auto",
    strict: bool = False,
    probes: tuple[DeclaredProbe, ...] = (),
    policies: tuple[Policy, ...] = (),
    mesh: MeshSettings = MESH,
    seconds: float = DEADLINE,
    **settings: Any,
) -> None:
    """Run *scene* on two nodes whose server application is *app*."""

    async def run() -> None:
        nodes = Nodes(
            app,
            tls,
            protocol=protocol,
            mode="STRICT" if strict else "PERMISSIVE",
            probes=probes,
            policies=policies,
            mesh=mesh,
            settings=settings,
        )
        await nodes.start()
        try:
            async with asyncio.timeout(seconds):
                await scene(nodes)
        finally:
            async with asyncio.timeout(DEADLINE):
                await nodes.stop()

    uvloop.run(run())
