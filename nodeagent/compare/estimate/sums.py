"""From pods to sums, and to what changes with one agent per node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nodeagent.compare.estimate.agent import AgentCost
from nodeagent.compare.estimate.amount import NOTHING, Amount
from nodeagent.compare.estimate.known import Kind
from nodeagent.compare.estimate.pods import EstimatedPod, PodListing
from nodeagent.compare.estimate.top import Key


@dataclass(slots=True)
class Sum:
    """What the sidecars of one namespace, or of one kind, request and use together."""

    pods: int = 0
    """Pods that have such a sidecar."""
    sidecars: int = 0
    unset: int = 0
    """Sidecars that request nothing."""
    measured: int = 0
    """Sidecars whose use is known."""
    requested: Amount = NOTHING
    used: Amount = NOTHING

    def json(self) -> dict[str, object]:
        """Return the sum as JSON; ``used`` is null where nothing is known of it."""
        return {
            "pods": self.pods,
            "sidecars": self.sidecars,
            "without_requests": self.unset,
            "requested": self.requested.json(),
            "measured": self.measured,
            "used": self.used.json() if self.measured else None,
        }


@dataclass(frozen=True, slots=True)
class Saving:
    """Sidecars, the agents in their place, and what that saves (negative: costs)."""

    sidecars: Amount
    agents: Amount

    @property
    def saved(self) -> Amount:
        """What agents take less than the sidecars in whose place they are; negative: more."""
        return self.sidecars - self.agents

    def json(self) -> dict[str, object]:
        """Return sidecars, agents and what is saved as JSON, in cores and bytes."""
        return {"sidecars": self.sidecars.json(), "agents": self.agents.json(), "saved": self.saved.json()}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What sidecars take now, and what agents would."""

    agent: AgentCost
    pods: int
    nodes: int | None
    """Nodes on which pods run; None where that is not known of every pod."""
    namespaces: Mapping[str, Sum]
    kinds: Mapping[Kind, Sum]
    total: Sum
    requested: Saving | None
    """By requests, for the sidecars that the agent replaces; None where the nodes are not known."""
    used: Saving | None
    """By use; None where that, or the nodes, are not known."""
    uninjected: int
    """Pods without a proxy that may have one."""
    injecting: Saving
    """What injecting them would request, and what agents that are there would need for them more."""
    notes: tuple[str, ...] = field(default=())

    def json(self) -> dict[str, object]:
        """Return everything as JSON: cores, and bytes."""
        return {
            "pods": self.pods,
            "nodes": self.nodes,
            "namespaces": {name: each.json() for name, each in self.namespaces.items()},
            "kinds": {kind: each.json() for kind, each in self.kinds.items()},
            "total": self.total.json(),
            "requested": self.requested.json() if self.requested else None,
            "used": self.used.json() if self.used else None,
            "uninjected": {"pods": self.uninjected, **self.injecting.json()},
            "agent": {
                "base_bytes": self.agent.base_bytes,
                "pod_bytes": self.agent.pod_bytes,
                "requested_cores": float(self.agent.requested_cores),
                "idle_cores": float(self.agent.idle_cores),
                "cpu_share": float(self.agent.cpu_share),
                "replaces": sorted(self.agent.replaces),
            },
            "notes": list(self.notes),
        }


def estimate(
    cluster: PodListing,
    usage: Mapping[Key, Amount] | None = None,
    agent: AgentCost | None = None,
    nodes: int | None = None,
) -> Estimate:
    """Return the estimate for *cluster*; *usage* as :func:`top.usage` reads it; *nodes* where the
    pods do not say on which they run.
    """
    agent = agent or AgentCost()
    usage = usage or {}
    names = Counter(pod.name for pod in cluster.pods)
    namespaces: dict[str, Sum] = {}
    kinds: dict[Kind, Sum] = {}
    total = Sum()
    replaced = Sum()
    for pod in cluster.pods:
        used = {each.name: _used(usage, pod, each.name, names[pod.name] == 1) for each in pod.sidecars}
        for target, those in (
            (total, set(used)),
            (namespaces.setdefault(pod.namespace, Sum()), set(used)),
            (replaced, {each.name for each in pod.sidecars if each.kind in agent.replaces}),
            *(
                (kinds.setdefault(kind, Sum()), {each.name for each in pod.sidecars if each.kind == kind})
                for kind in {each.kind for each in pod.sidecars}
            ),
        ):
            _add(target, pod, those, used)
    nodes = nodes or _nodes(cluster.pods)
    waiting = [pod for pod in cluster.pods if pod.injected is not None]
    uninjected = sum(pod.count for pod in waiting)
    adding = sum((pod.injected * pod.count for pod in waiting if pod.injected), NOTHING)
    known = bool(replaced.measured) and replaced.measured == replaced.sidecars
    return Estimate(
        agent=agent,
        pods=sum(pod.count for pod in cluster.pods),
        nodes=nodes,
        namespaces={name: namespaces[name] for name in sorted(namespaces) if namespaces[name].sidecars},
        kinds=dict(sorted(kinds.items())),
        total=total,
        requested=Saving(replaced.requested, agent.requests(nodes, replaced.pods))
        if nodes and replaced.sidecars
        else None,
        used=Saving(replaced.used, agent.uses(nodes, replaced.pods, replaced.used)) if nodes and known else None,
        uninjected=uninjected,
        injecting=Saving(adding, agent.requests(0, uninjected)),
        notes=(*cluster.notes, *_notes(total, kinds, agent, nodes, usage)),
    )


def _add(target: Sum, pod: EstimatedPod, those: set[str], used: Mapping[str, Amount | None]) -> None:
    target.pods += pod.count if those else 0
    for each in pod.sidecars:
        if each.name in those:
            target.sidecars += pod.count
            target.unset += pod.count if each.requested is None else 0
            target.requested += (each.requested or NOTHING) * pod.count
            if (amount := used[each.name]) is not None:
                target.measured += pod.count
                target.used += amount


def _used(usage: Mapping[Key, Amount], pod: EstimatedPod, container: str, alone: bool) -> Amount | None:
    """Return what a container uses; a pod whose namespace ``kubectl top`` did not tell is known by
    its name if that is the only one.
    """
    return usage.get((pod.namespace, pod.name, container), usage.get((None, pod.name, container)) if alone else None)


def _nodes(pods: Iterable[EstimatedPod]) -> int | None:
    found = {pod.node for pod in pods}
    return None if None in found else len(found)


def _notes(
    total: Sum, kinds: Mapping[Kind, Sum], agent: AgentCost, nodes: int | None, usage: Mapping[Key, Amount]
) -> list[str]:
    found = []
    if total.unset:
        found.append(
            f"{total.unset} of {total.sidecars} sidecars request nothing: they count as zero, and take what they take"
        )
    if usage and total.measured < total.sidecars:
        found.append(f"the use of {total.sidecars - total.measured} of {total.sidecars} sidecars is not known")
    if not nodes:
        found.append(
            "on how many nodes the pods run is not known, so what agents would take cannot be said: some pods "
            "have no nodeName"
        )
    for kind, each in sorted(kinds.items()):
        if kind not in agent.replaces:
            why = "the agent does not do their work"
            if kind == "logs":
                why = "the agent does their work where it is told to (docs/logs.md), at a cost by the line"
            found.append(f"{each.sidecars} sidecars for {kind} are listed, but not counted as saved: {why}")
    return found
