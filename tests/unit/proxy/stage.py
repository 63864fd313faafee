"""The whole proxy on loopback: real sockets, real loop; only the kernel's part (original
destination, sockets in pods) is stood in for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from nodeagent.config import ProxySettings
from nodeagent.mesh.entries import Delta, Endpoint, Protocol, Service, ServicePort, Workload
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.proxy import Proxy
from nodeagent.redirect.original import Original
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.log_format import FIELDS
from nodeagent.vocabulary import Address, Direction, PodUid, SpiffeId
from tests.waiting import DEADLINE, packet

VIP, VIP6 = "10.96.0.1", "fd00:10:96::1"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Log:
    """Keeps access-log records as dictionaries."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: tuple[Any, ...]) -> None:
        self.records.append(dict(zip(FIELDS, record, strict=True)))


MESH = MeshSettings("cluster.local")


def context(settings: ProxySettings, log: Log | None, mesh: MeshSettings = MESH) -> Context:
    """Return the context of a proxy with *settings* in *mesh*, which keeps its records in *log* if there is one."""
    return Context(
        loop=asyncio.get_running_loop(),
        settings=settings,
        mesh=mesh,
        cluster_id="Kubernetes",
        metrics=WorkerMetrics(),
        access_log=log,  # type: ignore[arg-type]
    )


class Originals:
    def __init__(self, address: str) -> None:
        self._address = address

    def of(self, transport: Any, pod: PodState, direction: Direction) -> Original:
        return Original(self._address, 80, None)


def _workload(uid: str, port: int, *addresses: str) -> Workload:
    return Workload(
        uid=PodUid(uid),
        pod=uid,
        namespace="default",
        node="n1",
        addresses=tuple(map(Address, addresses)),
        service_account=uid,
        identity=SpiffeId(f"spiffe://cluster.local/ns/default/sa/{uid}"),
        workload=uid,
        app=uid,
        version="v1",
        canonical_service=uid,
        canonical_revision="v1",
        ready=True,
        enrolled=True,
        ports=((port, "http"),),
        services=((port, "default/web"),),
    )


class Stage:
    """A client pod, a Service on port 80 of VIP, and one local server pod whose application is *handler*."""

    def __init__(self, handler: Handler, protocol: Protocol, settings: dict[str, Any]) -> None:
        self.log = Log()
        self.upstream_connections = 0
        self._handler, self._protocol = handler, protocol
        self._settings = ProxySettings.model_validate(settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint_port = 0
        self.addresses, self.asked = ("127.0.0.1",), VIP
        self.front: asyncio.Server
        self.back: asyncio.Server

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.back = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.endpoint_port = self.back.sockets[0].getsockname()[1]
        self.context = context(self._settings, self.log)
        self.proxy = Proxy(self.context)
        self.pods = {
            uid: PodState(PodUid(uid), 1, f"spiffe://cluster.local/ns/default/sa/{uid}", self._ask(uid))
            for uid in ("client", "server")
        }
        self.context.pods.update(self.pods)
        self.publish((Endpoint(Address("127.0.0.1"), self.endpoint_port, PodUid("server")),))
        self.front = await loop.create_server(self._accepted, "127.0.0.1", 0)
        self._sweeper = loop.create_task(self._sweep())

    def publish(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Give the Service these endpoints."""
        port = ServicePort(80, "http", self._protocol, endpoints)
        service = Service("web", "default", "web.default.svc.cluster.local", (Address(VIP), Address(VIP6)), (port,))
        self.context.view.apply(
            Delta(
                (
                    _workload("client", 1, "10.244.1.2"),
                    _workload("server", self.endpoint_port, *self.addresses),
                    service,
                )
            )
        )

    async def stop(self) -> None:
        self._sweeper.cancel()
        self.front.close()
        self.back.close()
        for connection in list(self.context.connections.values()):
            if connection.carriage is not None:
                connection.carriage.reset()
        for task in self._tasks:
            task.cancel()
        await packet()

    def halt(self) -> None:
        """Sweep no more: the time is the test's."""
        self._sweeper.cancel()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.front.sockets[0].getsockname(), limit=1 << 20)

    async def exchange(self, request: bytes) -> bytes:
        """Send *request* on a connection of its own and return everything until the proxy closes."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            async with asyncio.timeout(DEADLINE):
                return await reader.read(-1)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    def active(self) -> int:
        """Return the requests that the routes believe to be under way."""
        return sum(route.active for pod in self.pods.values() for routes in pod.routes.values() for route in routes)

    def _accepted(self) -> Any:
        return self.proxy.accepted(self.pods["client"], "outbound", Originals(self.asked))

    def _ask(self, uid: str) -> Callable[[Any, int], None]:
        def ask(family: Any, count: int) -> None:
            sockets = [socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET) for _ in range(count)]
            for made in sockets:
                made.setblocking(False)
            asyncio.get_running_loop().call_soon(self.pods[uid].stock[family].add, sockets)

        return ask

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _sweep(self) -> None:
        while True:
            self.proxy.revocation.sweep()
            await asyncio.sleep(0.05)  # the worker's own sweep, more often


def http(connection: Connection) -> Http1Downstream | None:
    """Return the codec that carries *connection*, if one does."""
    carriage = connection.carriage
    return carriage if isinstance(carriage, Http1Downstream) else None


def play(
    handler: Handler, scene: Callable[[Stage], Awaitable[None]], *, protocol: Protocol = "http", **settings: Any
) -> None:
    """Run *scene* on a stage whose application is *handler*; nothing may be left open after it."""

    async def run() -> None:
        stage = Stage(handler, protocol, settings)
        await stage.start()
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(stage)
        finally:
            await stage.stop()

    uvloop.run(run())


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return (head, body) of the next request as a strict server reads it: exactly one length, CRLF
    only. Raises IncompleteReadError at the end.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    fields = [line.split(b":", 1) for line in head.split(b"\r\n")[1:-2]]
    values = {name.lower(): value.strip() for name, value in fields}
    assert b"\n" not in head.replace(b"\r\n", b"")
    if b"transfer-encoding" in values:
        assert b"content-length" not in values
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        trailers = b""
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            trailers += line
        return head, body + trailers
    return head, await reader.readexactly(int(values.get(b"content-length", b"0")))


def answering(make: Callable[[bytes, bytes], bytes]) -> Handler:
    """Return an application that answers each request with what *make* says of (head, body)."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(make(*await read_request(reader)))
            await writer.drain()

    return handler


def ok(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), extra, body)
