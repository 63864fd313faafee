"""What the snapshot says, at the admin port: endpoints, routes, and why a connection may or may not be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from nodeagent.config import AgentConfig
from nodeagent.errors import ConfigError
from nodeagent.mesh.entries import Entry, Service, ServicePort, Workload
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.metrics import SNAPSHOT_ENTRIES
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import host_port


class MeshPages:
    """Pages over the *entries* of the snapshot."""

    def __init__(
        self,
        config: AgentConfig,
        entries: Callable[[], Iterable[Entry]],
        kernel_path: Callable[[Workload | None, Workload, int], str],
        node_addresses: Callable[[], Collection[str]],
    ) -> None:
        """*kernel_path* says in words which path a connection takes, and why; *node_addresses* returns the node's."""
        self._config = config
        self._entries = entries
        self._kernel_path = kernel_path
        self._node_addresses = node_addresses

    def routes(self) -> Routes:
        """``nodeagent get endpoints``, ``get routes`` and ``explain``."""
        return {
            ("GET", "/endpoints"): self._endpoints,
            ("GET", "/routes"): self._routes,
            ("GET", "/explain"): self._explain,
        }

    def collect(self, store: Store) -> None:
        """Set the metrics of the snapshot's size."""
        entries = list(self._entries())
        store.set(SNAPSHOT_ENTRIES, ("workload",), sum(1 for entry in entries if isinstance(entry, Workload)))
        store.set(SNAPSHOT_ENTRIES, ("service",), sum(1 for entry in entries if isinstance(entry, Service)))

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

    async def _explain(self, query: Mapping[str, str]) -> Response:
        from nodeagent.mesh.explain import explain  # 0.5 MB that few daemons are ever asked for
        from nodeagent.mesh.explain_policies import Question

        lines = [line.partition(": ") for line in query.get("headers", "").split("\n") if ": " in line]
        question = Question(
            query.get("source", "-"),
            query.get("destination", ""),
            query.get("method", ""),
            query.get("path", "") or "/",
            tuple((name, value) for name, _, value in lines),
        )
        config = self._config
        try:
            found = explain(
                self._entries(),
                question,
                node=config.node,
                mesh=config.mesh_settings(),
                setting=config.redirect.delivery,
                kernel_path=self._kernel_path,
                hbone=config.proxy.hbone,
                node_addresses=self._node_addresses(),
            )
        except ConfigError as error:
            return Response(f"{error}\n".encode(), 400)
        return Response.json(found.to_json())

    def _service_ports(self) -> Iterator[tuple[Service, ServicePort]]:
        for entry in self._entries():
            if isinstance(entry, Service):
                for port in entry.ports:
                    yield entry, port
