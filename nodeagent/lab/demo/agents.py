"""What the agents say of themselves: captured connections by path, identities proved, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain

from prometheus_client.parser import text_string_to_metric_families

from nodeagent.compare.measure import memory
from nodeagent.errors import ControlError
from nodeagent.istio import ADMIN_PORT
from nodeagent.lab import Lab, http
from nodeagent.lab.demo.application import HOPS, DemoHop
from nodeagent.telemetry.metrics import CONNECTIONS, ENROLLED_PODS, REQUESTS, TCP_OPENED

Labels = Mapping[str, str]
Paths = Counter[tuple[str, str]]
"""(direction, path) -> connections."""


class Samples:
    """Counters and gauges of all nodes, added up."""

    def __init__(self, texts: Iterable[str]) -> None:
        families = chain.from_iterable(map(text_string_to_metric_families, texts))
        samples = chain.from_iterable(family.samples for family in families)
        self._samples = [(sample.name, sample.labels, sample.value) for sample in samples]

    def select(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """Yield labels and value of the series of *name* that have these *labels*."""
        return (
            (found, value)
            for sample, found, value in self._samples
            if sample == name and labels.items() <= found.items()
        )

    def paths(self) -> Paths:
        """Return captured connections by direction and path."""
        counted: Paths = Counter()
        for labels, value in self.select(CONNECTIONS.name):
            counted[labels["direction"], labels["path"]] += int(value)
        return counted


@dataclass(frozen=True, slots=True)
class Proof:
    """What the metrics tell of a hop."""

    hop: DemoHop
    clients: frozenset[str]
    """Principals of the caller, as the called side's agent counted them; one, if all is well."""
    servers: frozenset[str]
    """Principals of the called side, as the caller's agent counted them."""
    policies: frozenset[str]
    count: int
    """Requests, or connections if the protocol is TCP, that the called side counted."""

    @property
    def holds(self) -> bool:
        """Whether each side proved to be who it should be, by the means expected."""
        return (
            self.count > 0
            and self.clients == {self.hop.client}
            and self.servers == {self.hop.server}
            and self.policies == {self.hop.policy}
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """One node's agent: proportional set size of all its processes, in bytes, and what it serves."""

    node: str
    pss: int
    processes: int
    pods: int


def scrape(lab: Lab) -> Samples:
    """Return what the agents of all nodes have counted; raises ControlError if one does not answer."""
    return Samples(_metrics(lab, node) for node in lab.nodes)


def proofs(samples: Samples) -> tuple[Proof, ...]:
    """Return what *samples* tell of every hop of the application."""
    return tuple(_proof(hop, samples) for hop in HOPS)


def footprints(lab: Lab) -> tuple[Footprint, ...]:
    """Return the memory of each node's agent."""
    return tuple(_footprint(lab, node) for node in lab.nodes)


def _proof(hop: DemoHop, samples: Samples) -> Proof:
    name = TCP_OPENED.name if hop.protocol == "tcp" else REQUESTS.name
    workloads = {"source_workload": hop.source, "destination_workload": hop.destination}
    called = list(samples.select(name, reporter="destination", **workloads))
    calling = list(samples.select(name, reporter="source", **workloads))
    return Proof(
        hop,
        frozenset(labels["source_principal"] for labels, _ in called),
        frozenset(labels["destination_principal"] for labels, _ in calling),
        frozenset(labels["connection_security_policy"] for labels, _ in called),
        int(sum(value for _, value in called)),
    )


def _footprint(lab: Lab, node: str) -> Footprint:
    processes = lab.agent(node).processes()
    enrolled = sum(int(value) for _, value in Samples([_metrics(lab, node)]).select(ENROLLED_PODS.name))
    return Footprint(node, memory(processes), len(processes), enrolled)


def _metrics(lab: Lab, node: str) -> str:
    try:
        status, text = http.get(lab.netns(node), ADMIN_PORT, "/metrics")
    except OSError as error:
        raise ControlError(
            f"{node}: the agent's metrics on port {ADMIN_PORT}: {error}; its log: {lab.agent(node).log}"
        ) from None
    if status != HTTPStatus.OK:
        raise ControlError(f"{node}: the agent's metrics on port {ADMIN_PORT}: {status} {text[:200]}")
    return text
