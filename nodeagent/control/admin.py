"""What the daemon answers about itself: admin API, metrics, readiness."""

from __future__ import annotations

import collections
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from nodeagent.errors import ConfigError
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, Entry, Service, ServicePort, Workload
from nodeagent.messages import AskFlows, AskMetrics
from nodeagent.telemetry import metrics as declared
from nodeagent.telemetry.exposition import Format
from nodeagent.telemetry.http_server import EVERYWHERE, LOCALHOST, HttpServer, Response, serve, serve_unix
from nodeagent.telemetry.scrapes import Scrapes, answer
from nodeagent.vocabulary import host_port

if TYPE_CHECKING:
    from nodeagent.control.main import Control

FLOWS_KEPT: Final = 2000
"""Connections of which nobody tells any more."""
log = logging.getLogger("nodeagent.control")


class Admin:
    """The three HTTP servers of control."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._servers: list[HttpServer] = []
        self._scrapes = Scrapes(self._exposition)
        self._sequence = itertools.count(1)
        self._seen: dict[str, tuple[int, dict[str, Any]]] = {}

    async def start(self) -> None:
        """Open the ports of ``telemetry`` in agent.yaml (0: any free one) and the admin socket. Raises ControlError."""
        config = self._control.config
        telemetry = config.telemetry
        admin = {
            ("GET", "/pods"): self._pods,
            ("GET", "/certs"): self._certs,
            ("GET", "/endpoints"): self._endpoints,
            ("GET", "/routes"): self._routes,
            ("GET", "/policies"): self._policies,
            ("GET", "/explain"): self._explain,
            ("GET", "/flows"): self._flows,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/reload"): self._reload,
        }
        metrics = {("GET", "/metrics"): self._scraped, ("GET", "/stats/prometheus"): self._scraped}
        ready = {("GET", "/ready"): self._ready, ("GET", "/healthz/ready"): self._ready}
        self._servers = [
            await serve(admin, port=telemetry.admin_port, hosts=LOCALHOST),
            await serve_unix(admin, config.runtime_directory / "admin.sock"),
            await serve(metrics, port=telemetry.metrics_port, hosts=EVERYWHERE),
            await serve(ready, port=telemetry.ready_port, hosts=EVERYWHERE),
        ]

    async def stop(self) -> None:
        for server in self._servers:
            await server.close()

    async def _ready(self, query: Mapping[str, str]) -> Response:
        missing = self._control.ready()
        return Response(("\n".join(missing) + "\n").encode(), 503) if missing else Response(b"ready\n")

    async def _pods(self, query: Mapping[str, str]) -> Response:
        flows = await self._live()
        rows = self._control.enrolment.rows()
        for row in rows:
            row["connections"] = sum(1 for flow in flows if not flow["closed"] and flow["pod"] == row["uid"])
            row["delivery"] = self._delivery(row["uid"])
            row["paths"] = {str(port): path for port, path in self._control.kernel_paths.paths(row["uid"]).items()}
        return Response.json(rows)

    def _delivery(self, uid: str) -> str:
        """Return how a pod is reached from others of the node that no NetworkPolicy selects, and why."""
        workers = self._control.workers
        workload, unread = workers.entry(f"workload/{uid}"), workers.entry(UNREAD)
        setting = self._control.config.redirect.delivery
        return str(delivery(setting, None, workload, unread)) if isinstance(workload, Workload) else ""

    async def _certs(self, query: Mapping[str, str]) -> Response:
        return Response.json(
            [
                {
                    "identity": held.certificate.identity,
                    "serial": held.certificate.serial,
                    "issued": held.certificate.issued,
                    "not_after": held.certificate.not_after,
                    "renew_at": held.renew_at,
                    "error": held.error,
                }
                for held in self._control.certificates.list()
            ]
        )

    async def _endpoints(self, query: Mapping[str, str]) -> Response:
        return Response.json(
            [
                {
                    "service": service.host,
                    "port": port.port,
                    "protocol": port.protocol,
                    "addresses": list(service.addresses),
                    "endpoints": [host_port(endpoint.address, endpoint.port) for endpoint in port.endpoints],
                }
                for service, port in self._service_ports()
            ]
        )

    async def _routes(self, query: Mapping[str, str]) -> Response:
        """Every Service port is one route to its endpoints."""
        return Response.json(
            [
                {
                    "service": service.host,
                    "port": port.port,
                    "match": "*",
                    "cluster": f"outbound|{port.port}||{service.host}",
                    "balance": "least request",
                }
                for service, port in self._service_ports()
            ]
        )

    async def _policies(self, query: Mapping[str, str]) -> Response:
        return Response.json(self._control.policies())

    async def _explain(self, query: Mapping[str, str]) -> Response:
        from nodeagent.mesh.explain import explain
        from nodeagent.mesh.explain_policies import Question

        headers = dict(line.split(": ", 1) for line in query.get("headers", "").split("\n") if ": " in line)
        question = Question(
            query.get("source", "-"),
            query.get("destination", ""),
            query.get("method", ""),
            query.get("path", "") or "/",
            headers,
        )
        config = self._control.config
        try:
            found = explain(
                self._entries(Entry),
                question,
                node=config.node,
                trust_domain=config.identity.trust_domain,
                setting=config.redirect.delivery,
                kernel_path=self._control.kernel_paths.explain,
            )
        except ConfigError as error:
            return Response(f"{error}\n".encode(), 400)
        return Response.json(found.to_json())

    def _service_ports(self) -> list[tuple[Service, ServicePort]]:
        return [(entry, port) for entry in self._entries(Service) for port in entry.ports]

    async def _flows(self, query: Mapping[str, str]) -> Response:
        """Connections that are new or changed since the sequence number ``since``."""
        try:
            since = int(query.get("since", "0"))
        except ValueError:
            return Response(b"since: a whole number is expected\n", 400)
        told = {flow["id"]: flow for flow in await self._live()}
        for _, flow in self._seen.values():
            if not flow["closed"] and flow["id"] not in told:
                told[flow["id"]] = {**flow, "closed": time.time()}  # gone with its worker, or among too many others
        for flow in told.values():
            known = self._seen.get(flow["id"])
            if known is None or known[1] != flow:
                self._seen.pop(flow["id"], None)
                self._seen[flow["id"]] = (next(self._sequence), flow)
        self._forget_flows(told)
        changed = [(number, flow) for number, flow in self._seen.values() if number > since]
        return Response.json(
            {"next": max((number for number, _ in changed), default=since), "flows": [flow for _, flow in changed]}
        )

    def _forget_flows(self, told: Mapping[str, Any]) -> None:
        """Keep a bounded number of what is told no more, shared evenly by the pods: a busy one pushes out its own."""
        past = [(key, flow["pod"]) for key, (_, flow) in self._seen.items() if key not in told]
        held = collections.Counter(pod for _, pod in past)
        surplus = len(past) - FLOWS_KEPT
        share = FLOWS_KEPT // (len(held) or 1)
        for key, pod in past if surplus > 0 else ():
            if held[pod] > share:
                held[pod] -= 1
                del self._seen[key]

    async def _reload(self, query: Mapping[str, str]) -> Response:
        return Response.json({"workers": await self._control.reload()})

    async def _metrics(self, query: Mapping[str, str]) -> Response:
        """Everything that was counted until now."""
        return answer(self._exposition)

    async def _scraped(self, query: Mapping[str, str]) -> Response:
        """The same up to a second ago: this port is open to every pod."""
        return answer(self._scrapes.get)

    async def _exposition(self, wanted: Format) -> Iterator[bytes]:
        """Workers are asked for what they have not reported yet."""
        control, store = self._control, self._control.store
        await control.workers.ask(AskMetrics)
        try:
            control.kernel_paths.collect(store)
        except OSError as error:
            log.error("what the kernel counted cannot be read: %s", error)
        members = control.enrolment.members.values()
        store.set(declared.ENROLLED_PODS, (), sum(1 for member in members if member.state == "enrolled"))
        store.set(declared.FAULTY_PODS, (), sum(1 for member in members if member.state != "enrolled"))
        for kind, count in (
            ("workload", len(list(self._entries(Workload)))),
            ("service", len(list(self._entries(Service)))),
        ):
            store.set(declared.SNAPSHOT_ENTRIES, (kind,), count)
        store.replace(
            declared.CERTIFICATE_EXPIRY,
            {(held.certificate.identity,): held.certificate.not_after for held in control.certificates.list()},
        )
        assert control.plane is not None
        statistics = control.plane.statistics()
        for name, (used, possible) in statistics.maps.items():
            store.set(declared.MAP_ENTRIES, (name,), used)
            store.set(declared.MAP_CAPACITY, (name,), possible)
        for name, value in statistics.counters.items():
            store.set(declared.KERNEL_EVENTS, (name,), value)
        return store.exposition(wanted)

    async def _live(self) -> list[dict[str, Any]]:
        flows = await self._control.workers.ask(AskFlows)
        try:
            return flows + self._control.kernel_paths.flows(self._control.store)
        except OSError as error:
            log.error("connections on the kernel path cannot be listed: %s", error)
            return flows

    def _entries(self, kind: Any) -> Any:
        return (entry for entry in self._control.workers.entries() if isinstance(entry, kind))
