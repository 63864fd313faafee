"""What a worker knows of the cluster: the snapshot's entries, indexed for one question per
connection.

Immutable entries come as deltas from control; an index entry is replaced, never changed, so whoever
holds one keeps what it started with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.istio import outbound_name
from nodeagent.mesh.entries import Delta, Endpoint, Entry, Protocol, Service, Workload, by_age, policies_of
from nodeagent.vocabulary import Address, PodUid

TARGETS: Final = 4096
"""Resolved addresses that are kept; a pod that scans addresses makes its node resolve anew, nothing more."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a dialled address stands for: a Service's port, a pod's port, or something outside the mesh."""

    address: Address
    port: int
    protocol: Protocol
    service: Service | None
    endpoints: tuple[Endpoint, ...]
    """Empty for an address outside the mesh (passed through), and for a Service that nothing serves."""
    passthrough: bool = False

    def server_name(self) -> str:
        """Return the server name by which a sidecar asks for it over mTLS: of a Service's port, by one of its
        addresses, or by a pod's where it has none; empty: it asks for none.
        """
        service = self.service
        if service is None or service.at(self.port) is None:
            return ""
        dialled = not service.addresses or self.address in service.addresses
        return outbound_name(service.host, self.port) if dialled else ""


class ClusterView:
    """Entries by uid, by address and by ClusterIP; ``generation`` grows with each delta,
    ``protection`` with each that may change a verdict.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.protection = 0
        self._policies: dict[str, Entry] = {}
        self._workloads: dict[PodUid, Workload] = {}
        self._services: dict[str, Service] = {}
        self._by_address: dict[Address, Workload] = {}
        self._by_vip: dict[Address, tuple[Service, ...]] = {}
        """Who says that a ClusterIP is theirs; while one passes to another Service both may, and the younger has it."""
        self._targets: dict[tuple[str, int], Resolved] = {}
        self._turns: dict[tuple[str, int], int] = {}
        """Of a provider's endpoints the one that was given last, by the Service's key and the port."""

    def apply(self, delta: Delta) -> None:
        """Put and drop entries; the cost is the size of the delta."""
        verdicts = False
        for key in delta.removals:
            verdicts |= not key.startswith(("workload/", "service/"))
            self._drop(key)
        for entry in delta.upserts:
            if isinstance(entry, Workload):
                before = self._workloads.get(entry.uid)
                verdicts |= before is not None and _protection(before) != _protection(entry)
            self._drop(entry.key)
            if isinstance(entry, Workload):
                self._workloads[entry.uid] = entry
                for address in entry.addresses:
                    self._by_address[address] = entry
            elif isinstance(entry, Service):
                self._services[entry.key] = entry
                for address in entry.addresses:
                    self._by_vip[address] = by_age((*self._by_vip.get(address, ()), entry))
            else:
                self._policies[entry.key] = entry
                verdicts = True
        self.generation += 1
        if verdicts:
            self.protection += 1
        self._targets.clear()

    def _drop(self, key: str) -> None:
        kind, _, name = key.partition("/")
        if kind == "workload":
            workload = self._workloads.pop(PodUid(name), None)
            for address in workload.addresses if workload else ():
                if self._by_address.get(address) is workload:
                    del self._by_address[address]
            return
        if kind != "service":
            self._policies.pop(key, None)
            return
        service = self._services.pop(key, None)
        for address in service.addresses if service else ():
            others = tuple(each for each in self._by_vip.pop(address) if each is not service)
            if others:
                self._by_vip[address] = others

    def workload(self, uid: PodUid) -> Workload | None:
        return self._workloads.get(uid)

    def workload_at(self, address: str) -> Workload | None:
        return self._by_address.get(Address(address))

    def policy(self, key: str) -> Entry | None:
        """Return the policy, or the key set of one, that is kept under *key*."""
        return self._policies.get(key)

    def policies(self) -> Iterable[Entry]:
        """Return everything that is kept under such keys."""
        return self._policies.values()

    def policies_of(self, workload: Workload) -> tuple[Entry, ...]:
        """Return the policies that apply to *workload*, which is of this node; what is missing is closed."""
        return policies_of(workload, self._policies.get)

    def service_of(self, workload: Workload, port: int) -> Service | None:
        """Return the Service that *workload* serves at its own *port*, for the metrics' labels."""
        for served, name in workload.services:
            if served == port:
                return self._services.get(f"service/{name}")
        return None

    def service_called(self, host: str) -> Service | None:
        """Return the Service of which *host* is the ``[namespace/]name``, short or whole."""
        namespace, _, name = host.rpartition("/")
        own, _, rest = name.removesuffix(".svc.cluster.local").removesuffix(".svc").partition(".")
        return self._services.get(f"service/{rest or namespace or 'default'}/{own}")

    def endpoint_of(self, host: str, port: int) -> tuple[str, int] | None:
        """Return where *host* (:meth:`service_called`, or an address) serves *port* now, of several
        endpoints of the first one's family the next; None: nowhere.
        """
        _, _, name = host.rpartition("/")
        if ":" in name or name.replace(".", "").isdigit():
            return name, port
        service = self.service_called(host)
        if service is None:
            return None
        served = service.at(port)
        if served is None or not served.endpoints:
            return None
        v6 = ":" in served.endpoints[0].address
        endpoints = [each for each in served.endpoints if (":" in each.address) == v6]
        turn = self._turns[service.key, port] = self._turns.get((service.key, port), -1) + 1
        endpoint = endpoints[turn % len(endpoints)]
        return endpoint.address, endpoint.port

    def resolve(self, address: str, port: int) -> Resolved:
        """Return what *address* and *port*, as an application dialled them, stand for."""
        found = self._targets.get((address, port))
        if found is None:
            if len(self._targets) >= TARGETS:
                self._targets.clear()
            found = self._targets[address, port] = self._resolved(address, port)
        return found

    def _resolved(self, address: str, port: int) -> Resolved:
        where = Address(address)
        holders = self._by_vip.get(where)
        if holders is not None:
            service = holders[-1]
            served = service.at(port)
            if served is None:
                # A ClusterIP at a port that the Service does not have: nothing answers there, and
                # nothing may be guessed.
                return Resolved(where, port, "tcp", service, ())
            v6 = ":" in address
            endpoints = tuple(endpoint for endpoint in served.endpoints if (":" in endpoint.address) == v6)
            return Resolved(where, port, served.protocol, service, endpoints or served.endpoints)
        workload = self._by_address.get(where)
        if workload is None:
            return Resolved(where, port, "auto", None, (), passthrough=True)
        return Resolved(
            where,
            port,
            workload.protocol_at(port),
            self.service_of(workload, port),
            (Endpoint(where, port, workload.uid),),
        )


def _protection(workload: Workload) -> tuple[object, ...]:
    """Return what of *workload* a verdict on its connections rests on."""
    return workload.identity, workload.mtls, workload.port_mtls, workload.policies
