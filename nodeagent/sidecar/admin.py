"""What a sidecar answers about itself, at Istio's ports: metrics and the application's probes,
readiness, and (localhost only) its connections.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Protocol

from nodeagent import istio
from nodeagent.identity.certificate import Certificate
from nodeagent.mesh.compile import Mesh
from nodeagent.proxy.proxy import Proxy
from nodeagent.resources.source import Source
from nodeagent.sidecar.pod import Pod
from nodeagent.sidecar.probes import AppProbe, check
from nodeagent.sidecar.secrets import SecretsClient
from nodeagent.telemetry.formats import Format
from nodeagent.telemetry.http_server import EVERYWHERE, LOCALHOST, HttpServer, Response, Routes, serve
from nodeagent.telemetry.scrapes import answer
from nodeagent.telemetry.store import Store


class Shown(Protocol):
    """What the ports show of a sidecar, and the one thing that they may do to it."""

    pod: Pod
    proxy: Proxy
    store: Store
    mesh: Mesh
    source: Source
    secrets: SecretsClient
    certificate: Certificate | None
    """The one in use; None: there is none."""

    def ready(self) -> list[str]:
        """Return what keeps the sidecar from being ready; nothing: it is."""

    def report(self) -> None:
        """Bring the store up to now."""

    def drain(self) -> None:
        """Stop being ready, and end after a while."""


class Ports:
    """The three HTTP servers of a sidecar."""

    def __init__(self, sidecar: Shown, probes: Mapping[str, AppProbe]) -> None:
        self._sidecar = sidecar
        self._probes = probes
        self._servers: list[HttpServer] = []

    async def start(self) -> None:
        """Open the ports. Raises ConfigError when one is taken."""
        metrics = {("GET", "/metrics"): self._metrics, ("GET", "/stats/prometheus"): self._metrics}
        probes: Routes = {("GET", path): functools.partial(self._probe, probe) for path, probe in self._probes.items()}
        ready = {("GET", "/healthz/ready"): self._ready}
        admin = {
            ("GET", "/flows"): self._flows,
            ("GET", "/certs"): self._certs,
            ("GET", "/policies"): self._policies,
            **metrics,
            **ready,
        }
        admin[("POST", "/quitquitquit")] = self._quit
        for port, hosts, routes in (
            (istio.ADMIN_PORT, LOCALHOST, admin),
            (istio.STATUS_PORT, EVERYWHERE, {**metrics, **ready, **probes}),
            (istio.READY_PORT, EVERYWHERE, ready),
        ):
            self._servers.append(await serve(routes, port=port, hosts=hosts))

    async def close(self) -> None:
        for server in self._servers:
            await server.close()

    async def _metrics(self, query: Mapping[str, str]) -> Response:
        return answer(self._exposition)

    async def _exposition(self, wanted: Format) -> Iterator[bytes]:
        self._sidecar.report()
        return self._sidecar.store.exposition(wanted)

    async def _ready(self, query: Mapping[str, str]) -> Response:
        missing = self._sidecar.ready()
        return Response(("\n".join(missing) + "\n").encode(), 503) if missing else Response(b"ready\n")

    async def _probe(self, probe: AppProbe, query: Mapping[str, str]) -> Response:
        fault = await check(probe, self._sidecar.pod.addresses[0])
        return Response(f"{fault}\n".encode("utf-8", "replace"), 503) if fault else Response(b"ok\n")

    async def _quit(self, query: Mapping[str, str]) -> Response:
        """Drain and end, as on SIGTERM: how a Job's last container lets its pod complete (Envoy's word for it)."""
        self._sidecar.drain()
        return Response(b"draining\n")

    async def _flows(self, query: Mapping[str, str]) -> Response:
        context = self._sidecar.proxy.context
        return Response.json(
            [connection.flow(os.getpid()) for connection in (*context.recent, *context.connections.values())]
        )

    async def _certs(self, query: Mapping[str, str]) -> Response:
        held = self._sidecar.certificate
        row = (
            {"identity": held.identity, "serial": held.serial, "issued": held.issued, "not_after": held.not_after}
            if held is not None
            else None
        )
        return Response.json([row | {"error": self._sidecar.secrets.fault}] if row is not None else [])

    async def _policies(self, query: Mapping[str, str]) -> Response:
        return Response.json(self._sidecar.mesh.policies(self._sidecar.source.refused()))
