"""Where a connection may lead: the routes of the current snapshot, and what reaches their
endpoints.

Routes are made once per client, target and snapshot; :func:`pick` balances between them.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from functools import partial
from typing import Final, cast

from nodeagent.istio import TUNNEL_PORT, outbound_name
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, Endpoint, Workload, takes_mtls
from nodeagent.proxy.connection import Connection, Path
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial
from nodeagent.proxy.external.model import Way
from nodeagent.proxy.hbone.tunnel import HboneTunnel
from nodeagent.proxy.http.exchange import Upstream
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.pool import Pool
from nodeagent.proxy.route import Destination, Route

_CLIENTS: Final = 4
"""Each client has connections of its own to an application; of all together as many may idle as of
this many clients with all that they may keep.
"""
ROUTES_PER_POD: Final = 4096
"""A pod that scans addresses makes its own cache useless, nothing more."""


class Routing:
    """The routes of one worker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # routes and open connections hold them
        self._pools: weakref.WeakValueDictionary[Dial, Pool] = weakref.WeakValueDictionary()
        self._tunnels: weakref.WeakValueDictionary[Dial, HboneTunnel] = weakref.WeakValueDictionary()

    def routes(self, connection: Connection) -> list[Route]:
        """Return the routes of the current snapshot that *connection* may take, at least one;
        connections alike share them.
        """
        if connection.view != self._context.view.generation:
            self._provide(connection)
        return cast("list[Route]", connection.routes)

    def again(self, connection: Connection, before: Route) -> Route:
        """Return the route of the current snapshot by which *connection* would reach the endpoint of
        *before*, be it that this has left its Service meanwhile: what it serves yet is judged as ever.
        """
        for route in self.routes(connection):
            if route.upstream_host == before.upstream_host:
                return route
        if before.endpoint is None or connection.direction == "inbound":
            return before
        to = self._towards(connection, before.endpoint, before.cluster)
        return Route(self._context.metrics, connection, to, self._context.cluster_id)

    def _provide(self, connection: Connection) -> None:
        view = self._context.view
        generation = connection.view = view.generation
        pod = connection.pod
        peer = connection.peer
        if pod.routes_view != generation or len(pod.routes) > ROUTES_PER_POD:
            pod.routes.clear()
            pod.routes_view = generation
        inbound = connection.direction == "inbound"
        if not inbound:
            connection.target = view.resolve(connection.target.address, connection.target.port)
        elif peer.workload is None and not peer.identity:
            # It may have come before its pod was known here.
            peer = connection.peer = replace(peer, workload=view.workload_at(peer.address))
        target = connection.target
        key = (
            connection.direction,
            peer.identity,
            peer.security,
            peer.address,
            target.address,
            target.port,
            connection.sni,
            connection.chosen,
        )
        routes = pod.routes.get(key)
        if routes is None:
            destinations = [self._inbound(connection)] if inbound else self._outbound(connection)
            routes = pod.routes[key] = [
                Route(self._context.metrics, connection, to, self._context.cluster_id) for to in destinations
            ]
        connection.routes = routes

    def _inbound(self, connection: Connection) -> Destination:
        """The application in the pod itself, dialled from inside it."""
        target = connection.target
        pod = connection.pod
        peer = connection.peer
        path: Path = "proxy-mtls" if peer.security == "mutual_tls" else "proxy-plaintext"
        endpoint = Endpoint(target.address, target.port, pod.uid)
        workload = self._context.view.workload(pod.uid)
        # a probe asks about the address that it asks
        probes = peer.security == "none" and peer.address in self._context.node_addresses
        other = "" if probes else other_address(workload, target.address)
        client = (peer.address, *(peer.workload.addresses if peer.workload is not None else ()))
        pool = self._pool(Dial(pod, target.address, target.port, None, other, client, declared=target.protocol))
        return Destination(endpoint, workload, path, pool, f"inbound|{target.port}||", delivers=True)

    def _outbound(self, connection: Connection) -> list[Destination]:
        """One destination an endpoint; outside the mesh, the address itself."""
        target = connection.target
        pod = connection.pod
        client = connection.peer.workload
        if target.passthrough:
            outside = Endpoint(target.address, target.port, pod.uid)
            pool = self._pool(Dial(pod, target.address, target.port, None, bound=self._on_network(client, None)))
            return [Destination(outside, None, "passthrough", pool, "PassthroughCluster", delivers=False)]
        cluster = f"outbound|{target.port}||{target.service.host if target.service else target.address}"
        chosen = [endpoint for endpoint in target.endpoints if (endpoint.address, endpoint.port) == connection.chosen]
        return [self._towards(connection, endpoint, cluster) for endpoint in chosen or target.endpoints] or [
            Destination(None, None, "none", None, cluster, delivers=False)
        ]

    def _towards(self, connection: Connection, endpoint: Endpoint, cluster: str) -> Destination:
        """An enrolled pod of this node is delivered to directly; another node's gets mTLS; one that
        is not enrolled, plaintext; what is no pod, the bytes as they are.
        """
        pod = connection.pod
        client = connection.peer.workload
        declared = connection.target.protocol
        if not endpoint.uid:
            bound = self._on_network(client, None)
            pool = self._pool(Dial(pod, endpoint.address, endpoint.port, None, bound=bound, declared=declared))
            return Destination(endpoint, None, "passthrough", pool, cluster, delivers=False)
        workload = self._context.view.workload(endpoint.uid)
        # else its own side says what protects it
        local = self._context.pods.get(endpoint.uid) if workload is not None else None
        other = other_address(workload, endpoint.address)
        network = self._on_network(client, workload)
        if local is not None:
            seen = client.addresses if client is not None else ()
            dialler = pod if network else local
            dial = Dial(dialler, endpoint.address, endpoint.port, None, other, seen, network, declared, endpoint.uid)
            return Destination(endpoint, workload, "proxy-local", self._pool(dial), cluster, delivers=True)
        tunnel = self._tunnel(pod, workload, endpoint.address)
        proved = tunnel is not None or (workload is not None and takes_mtls(workload, endpoint.port))
        dial = Dial(
            pod,
            endpoint.address,
            endpoint.port,
            workload.identity if workload is not None and proved else None,
            other,
            bound=network,
            declared=declared,
            uid=endpoint.uid,
            tunnel=tunnel,
            server_name=connection.target.server_name() if proved and tunnel is None else "",
        )
        path: Path = "proxy-mtls" if proved else "proxy-plaintext"
        return Destination(endpoint, workload, path, self._pool(dial), cluster, delivers=False)

    def _tunnel(self, pod: PodState, workload: Workload | None, address: str) -> HboneTunnel | None:
        """Return what carries the connections of *pod* to *workload* at *address* where that is an ambient
        mesh's; None: they are dialled.
        """
        if workload is None or not self._context.settings.hbone or not workload.ambient:
            return None
        dial = Dial(pod, address, TUNNEL_PORT, workload.identity, uid=workload.uid, hbone=True)
        tunnel = self._tunnels.get(dial)
        if tunnel is None:
            tunnel = self._tunnels[dial] = HboneTunnel(self._context, dial)
        return tunnel

    def _on_network(self, client: Workload | None, server: Workload | None) -> bool:
        """Say whether the network is to be asked about each connection of *client* to *server*."""
        return delivery(self._context.delivery, client, server, self._context.view.policy(UNREAD)).way == "network"

    def way_to(self, service: str, port: int, asker: str, dialler: PodState | None = None) -> Way | None:
        """Return how the provider at *port* of *service* is reached for the pod *asker*, by
        *dialler* if that is not the pod itself; None: it is nowhere.

        One that takes mTLS is asked from inside that pod and with its identity, as a sidecar there
        would, and not at all for a pod that is not here (any more); any other from the node, in
        plaintext.
        """
        where = self._context.view.endpoint_of(service, port)
        if where is None:
            return None
        workload = self._context.view.workload_at(where[0])
        pod = dialler or self._context.pods.get(asker)
        if workload is None or not takes_mtls(workload, where[1]):
            return Way(*where)
        if pod is None:
            return None
        found = self._context.view.service_called(service)
        name = outbound_name(found.host, port) if found is not None else ""
        dial = Dial(pod, *where, None if workload.uid == asker else workload.identity, server_name=name)
        return Way(*where, dial, partial(dial.connect, self._context))

    def _pool(self, dial: Dial) -> Pool:
        pool = self._pools.get(dial)
        if pool is None:
            pool = self._pools[dial] = Pool(self._context, dial)
        return pool

    def nowhere(self, connection: Connection) -> Route:
        """Return what a connection counts under that leads nowhere."""
        none = Destination(None, None, "none", None, "-", delivers=False)
        return Route(self._context.metrics, connection, none, self._context.cluster_id)

    def pools(self) -> list[Pool]:
        """Return the pools that are in use."""
        return list(self._pools.values())

    def sweep(self, now: float, idle: float) -> None:
        """Close upstream connections that idled for *idle* seconds at *now* (monotonic), and of one
        application's the oldest beyond some.
        """
        for tunnel in list(self._tunnels.values()):
            tunnel.sweep(now, idle)
        most = _CLIENTS * self._context.limits.idle_upstream_connections
        waiting: dict[tuple[str, int], list[tuple[Pool, Upstream]]] = {}
        for pool in self.pools():
            pool.sweep(now, idle)
            if pool.dial.client:
                waiting.setdefault((pool.dial.address, pool.dial.port), []).extend(
                    [(pool, upstream) for upstream in pool.idle()]
                )
        for upstreams in waiting.values():
            if len(upstreams) > most:
                upstreams.sort(key=lambda each: each[1].idle_since)
                for pool, upstream in upstreams[:-most]:
                    pool.close(upstream)


def pick(routes: list[Route]) -> Route:
    """Return one of *routes*: of two random ones that with fewer requests under way."""
    count = len(routes)
    if count == 1:
        return routes[0]
    drawn = int.from_bytes(os.urandom(4), "little")
    first = drawn % count
    second = (first + 1 + (drawn >> 16) % (count - 1)) % count
    one = routes[first]
    other = routes[second]
    return one if one.active <= other.active else other


def other_address(workload: Workload | None, address: str) -> str:
    """Return the address that *workload* has in the other family than *address*, empty if it has none."""
    return (
        next((own for own in workload.addresses if (":" in own) != (":" in address)), "")
        if workload is not None
        else ""
    )
