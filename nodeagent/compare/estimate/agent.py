"""What one agent takes on a node. The defaults are what this project's benchmark measured on two
cores; a person may put in theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from nodeagent.compare.estimate.amount import Amount
from nodeagent.compare.estimate.known import Kind


@dataclass(frozen=True, slots=True)
class AgentCost:
    """What one agent is taken to cost: bytes are PSS of all of its processes, cores are of CPU."""

    base_bytes: int = 77_800_000
    """Of an agent with two pods that have had no traffic: what grows with pods is little beside it."""
    pod_bytes: int = 30_000
    """For each pod that it captures: 77.9 MB with 2 pods, 80.8 MB with 100 (docs/results/bench.json)."""
    requested_cores: Fraction = Fraction(1)
    """What a node would set aside for it: all that one worker, its default, can use. Not measured:
    a choice, and a cautious one.
    """
    idle_cores: Fraction = Fraction(1, 100)
    """What it uses while no pod does anything: 0.4 to 0.7 % of a core."""
    cpu_share: Fraction = Fraction(1, 6)
    """CPU for a request through the agent, by what an Envoy pair needs for it: 61 µs by 371 µs,
    HTTP, one node, 32 connections, access log on.
    """
    replaces: frozenset[Kind] = frozenset({"mesh"})
    """The sidecars whose work it does; only these are counted against it."""

    def requests(self, nodes: int, pods: int) -> Amount:
        """Return what agents on *nodes* nodes with *pods* captured pods in all would request."""
        return Amount(self.requested_cores * nodes, Fraction(self.base_bytes * nodes + self.pod_bytes * pods))

    def uses(self, nodes: int, pods: int, proxies: Amount) -> Amount:
        """Return what they would use for the traffic for which sidecars use *proxies*."""
        return Amount(self.idle_cores * nodes + self.cpu_share * proxies.cores, self.requests(nodes, pods).memory)
