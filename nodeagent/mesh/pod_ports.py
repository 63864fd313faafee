"""Which ports the pods of a node have, and whether policies name others: for the rows of ``nodeagent get policies``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from nodeagent.mesh import rules
from nodeagent.mesh.cluster_state import ClusterState
from nodeagent.mesh.entries import Entry, Workload
from nodeagent.mesh.selection import NamespacedName
from nodeagent.mesh.service_ports import ports_of
from nodeagent.policy.model import AuthorizationPolicy, PeerAuthentication
from nodeagent.resources.security import Policy


class PodPorts:
    """The ports of pods of *state*, each pod asked once however many policies are for it; made for one page.
    *entry_of* returns what was compiled of a pod.
    """

    def __init__(self, state: ClusterState, entry_of: Callable[[NamespacedName], Entry | None]) -> None:
        self._state = state
        self._entry_of = entry_of
        self._declared: dict[NamespacedName, frozenset[int]] = {}
        self._leads: dict[NamespacedName, dict[int, list[str]]] = {}
        self._where: dict[tuple[frozenset[NamespacedName], tuple[int, ...]], str] = {}
        """Where the Services of pods lead at ports, in words: policies of one namespace mostly ask the same."""

    def undeclared(self, policy: Policy, pods: Collection[NamespacedName]) -> str:
        """Return, in words, which ports of *policy* none of the *pods* has, which it selects; empty: none is such, or
        not all of them say which they have.
        """
        named = {port for port, _ in policy.spec.ports} if isinstance(policy.spec, PeerAuthentication) else set()
        if isinstance(policy.spec, AuthorizationPolicy) and not policy.targets:
            named = ports_of(policy.spec)
        declared = [self._declared_by(key) for key in pods] if named else []
        strange = sorted(named - {0}.union(*declared))
        if not strange or not all(declared):
            return ""
        asked = frozenset(pods), tuple(strange)
        if (where := self._where.get(asked)) is None:
            leads: set[str] = set()
            for key in pods:
                led = self._led_to(key)
                leads.update(*(led.get(port, ()) for port in strange))
            where = self._where[asked] = f" ({', '.join(sorted(leads))})" if leads else ""
        return f"ports: {', '.join(map(str, strange))}: no port of a pod of this node that it selects{where}"

    def _declared_by(self, key: NamespacedName) -> frozenset[int]:
        """Return the ports that the pod *key* has as it and its Services say."""
        found = self._declared.get(key)
        if found is None:
            found = self._declared[key] = frozenset(self._ports(key))
        return found

    def _ports(self, key: NamespacedName) -> Iterator[int]:
        for container in self._state.pods[key].containers:
            yield from (port.number for port in container.ports)
        entry = self._entry_of(key)
        if isinstance(entry, Workload):
            yield from (number for number, _ in entry.ports)
            yield from (probe.port for probe in (*entry.probes, *entry.scrapes))

    def _led_to(self, key: NamespacedName) -> dict[int, list[str]]:
        """Return, in words, to which port of the pod *key* each port leads of Services that select it."""
        found = self._leads.get(key)
        if found is None:
            found = self._leads[key] = {}
            for service in self._state.selection.services_of(key):
                for port in self._state.services[service].ports:
                    number = rules.target_port(port, self._state.pods[key])
                    if number is not None:
                        words = f"Service {service[1]}'s {port.port} is {number} there"
                        found.setdefault(port.port, []).append(words)
        return found
