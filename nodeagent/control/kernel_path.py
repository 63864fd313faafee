"""The kernel path as control runs it: plan, bring to the maps, tell, count, and close what may not go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import CONNECT_FAILED, POLICY_DENIED
from nodeagent.mesh.entries import Entry, Service, Workload, policies_of
from nodeagent.mesh.kernel_plan import (
    ALLOWED,
    COUNTED,
    KernelPlan,
    KernelPlanner,
    KernelPlanSettings,
    KernelVerdict,
    PortPath,
)
from nodeagent.mesh.local import BYPASS
from nodeagent.redirect.bypass import SocketEnds
from nodeagent.redirect.kernel_record import CountedPair, FlowId, RecordedFlow, Refusals, Total
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.sock_diag import CarriedBytes
from nodeagent.telemetry import labels
from nodeagent.telemetry.metrics import CONNECTIONS, KERNEL_LEFT_OUT, POLICY_EVENTS, REFUSED, UNKNOWN, Labels
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid, host_port

log = logging.getLogger("nodeagent.kernel_path")
_REPORTERS: Final = ("source", "destination")
_NOTHING: Final = CarriedBytes(0, 0)
CUTS_KEPT: Final = 4096
REFUSALS_KEPT: Final = 32
"""Rows of a client."""


@dataclass(frozen=True, slots=True)
class _Peers:
    source: Workload
    server: Workload


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Connections that were refused alike: the first one's time, how many, and their row."""

    opened: float
    times: int
    row: dict[str, object]


class KernelPaths:
    """One for the node. One thread only."""

    def __init__(self, plane: DataPlane, settings: KernelPlanSettings, cluster: str) -> None:
        """*cluster*: the label of Istio's metrics."""
        self._plane = plane
        self._settings = settings
        self._cluster = cluster
        self._planner = KernelPlanner(settings)
        self._plan = KernelPlan()
        self._entries: dict[str, Entry] = {}
        self._workloads: dict[int, Workload] = {}
        """By number; those of pods that are gone until they are counted a last time."""
        self._numbers: dict[PodUid, int] = {}
        self._told: dict[CountedPair, Total] = {}
        self._past: dict[str, dict[str, object]] = {}
        self._cut: dict[int, str] = {}
        """By the client's socket cookie, of connections that were closed here: the policy that refuses them now."""
        self._refused: dict[int, dict[str, _Refusals]] = {}
        """Rows by client's number and id, the latest last."""

    # -- what changes --

    def update(self, entries: Iterable[Entry]) -> None:
        """Bring the kernel to the snapshot *entries* and to the pods that are enrolled now. Call it
        after each change of either. Raises OSError.
        """
        self._entries = {entry.key: entry for entry in entries}
        self._numbers = self._plane.numbers()
        for uid, number in self._numbers.items():
            workload = self._entries.get(f"workload/{uid}")
            if isinstance(workload, Workload):
                self._workloads[number] = workload
        self._plan = self._planner.plan(self._entries.values(), self._numbers.keys())
        before = set(self._plane.kernel.left_out)
        self._plane.kernel.sync(self._plan, self._numbers)
        for where, why in self._plane.kernel.left_out.items():
            if where not in before:
                log.error("%s stays on the proxy path: %s", host_port(*where), why)
        if self._plane.superseded():
            return
        wanted = any(to.http for to in self._plan.destinations.values())
        if wanted != self._plane.http.enabled and (self._plane.http.ready or not wanted):
            (self._plane.http.enable if wanted else self._plane.http.disable)()

    def knows_all(self) -> bool:
        """Say whether the pods are those of the last :meth:`update`."""
        return self._numbers == self._plane.numbers()

    def close_refused(self, store: Store) -> int:
        """Close established connections that policy refuses now, or would decide per request;
        return how many. Call it after :meth:`update`.

        Raises OSError.
        """
        closed = 0
        for flow in self._plane.kernel.record.flows():
            peers = self._peers(flow.source, flow.destination)
            if peers is None:
                continue
            verdict = self._judged(flow, peers)
            if not verdict.allowed and self._plane.close_flow(flow):
                closed += 1
                self._cut[flow.client] = verdict.policy
                store.add(POLICY_EVENTS, (_name(peers.server), verdict.policy, "closed"))
        for client in list(self._cut)[:-CUTS_KEPT]:
            del self._cut[client]
        return closed

    # -- what is told --

    def path_of(self, server: Workload, port: int) -> PortPath:
        """Return the path of connections from this node's captured pods to *port* of *server*."""
        if server.uid not in self._numbers:
            return PortPath("proxy", "the server is not a captured pod of this node")
        known = self._plan.ports.get((server.uid, port))
        if known is None:
            return PortPath("proxy", "no Service targets the port")
        full = [why for address in server.addresses if (why := self._plane.kernel.left_out.get((address, port)))]
        return PortPath("proxy", full[0]) if full and known.path == "kernel" else known

    def explain(self, client: Workload | None, server: Workload, port: int) -> str:
        """Say in words which path a connection takes, and why: for ``nodeagent explain``."""
        if client is None or client.uid not in self._numbers:
            return "proxy: the client is not a captured pod of this node"
        path = self.path_of(server, port)
        refusal = self._plane.joining.refusal
        unjoined = f"; {BYPASS} is refused: {refusal}" if refusal and (client.bypass or server.bypass) else ""
        return f"{path.path}: {path.why}{unjoined}"

    def paths(self, uid: PodUid) -> dict[int, str]:
        """Return the path of each port of a pod with the reason, in words: for ``nodeagent get pods``."""
        workload = self._entries.get(f"workload/{uid}")
        if not isinstance(workload, Workload):
            return {}
        paths = ((port, self.path_of(workload, port)) for port, _ in workload.ports)
        return {port: f"{path.path}: {path.why}" for port, path in paths}

    def flows(self, store: Store) -> list[dict[str, object]]:
        """Return the connections on the kernel path as ``nodeagent flows`` shows them: open, ended
        and refused ones. Raises OSError.
        """
        flows = [flow for flow in self._plane.kernel.record.flows() if flow.opened]
        carried = self._carried(flows)
        rows = []
        for flow in flows:
            peers = self._peers(flow.source, flow.destination)
            if peers is not None:
                there = carried.get(flow.id, _NOTHING)
                rows.append({**self._row(flow, peers), "sent": there.received, "received": there.sent})
        self._count_refusals(store)
        rows += self._ended()
        for of_client in self._refused.values():
            rows += [each.row for each in of_client.values()]
        return rows

    def _ended(self) -> list[dict[str, object]]:
        """Rows once made are kept: what is decided now says nothing of a connection that has ended."""
        rows: dict[str, dict[str, object]] = {}
        for one in self._plane.kernel.record.ended():
            key = f"kernel-{one.flow.client}"
            row = self._past.get(key)
            if row is None and (peers := self._peers(one.flow.source, one.flow.destination)) is not None:
                ended = {
                    "opened": one.flow.opened or one.closed,
                    "closed": one.closed,
                    "sent": one.sent,
                    "received": one.received,
                }
                row = self._row(one.flow, peers) | ended
                if one.flow.client in self._cut:
                    row |= {"verdict": "deny", "reason": POLICY_DENIED.code, "policy": self._cut[one.flow.client]}
            if row is not None:
                rows[key] = row
        self._past = rows
        self._cut = {client: policy for client, policy in self._cut.items() if f"kernel-{client}" not in rows}
        return list(rows.values())

    def _row(self, flow: RecordedFlow, peers: _Peers) -> dict[str, object]:
        why = self.path_of(peers.server, flow.id.destination[1]).why
        policy = self._judged(flow, peers).policy
        told = {"id": f"kernel-{flow.client}", "opened": flow.opened, "why": why, "policy": policy}
        if not flow.opened:
            told |= {"verdict": "error", "reason": CONNECT_FAILED.code}
        return self._ends(peers, flow.id.destination[1], flow.service) | told

    def _ends(self, peers: _Peers, port: int, service: str) -> dict[str, object]:
        source = peers.source
        server = peers.server
        found = self._service(service, server, port) if service else None
        return {
            "closed": None,
            "pod": source.uid,
            "direction": "outbound",
            "source": f"{source.namespace}/{source.pod}",
            "source_identity": source.identity,
            "destination": f"{server.namespace}/{server.pod}:{port}",
            "destination_identity": server.identity,
            "service": found.host if found else "",
            "path": "kernel",
            "protocol": "http" if server.protocol_at(port) in COUNTED else "tcp",
            "verdict": "allow",
            "reason": "",
            "probe": False,
            "requests": 0,
            "codes": [],
            "grpc_statuses": [],
            "sent": 0,
            "received": 0,
            "worker": "kernel",
        }

    # -- what is counted --

    def collect(self, store: Store) -> None:
        """Add to *store* what the kernel counted since the last call: TCP, HTTP and refusals. Raises OSError."""
        kernel = self._plane.kernel
        totals = dict(kernel.counts.totals())
        self._add_open(totals)  # after the totals: what ends in between is counted next time, and not twice
        series = []
        for pair, total in totals.items():
            told = self._told.get(pair, Total())
            new = _growth(told, total)
            self._told[pair] = _higher(told, total)
            peers = self._labels(pair.source, pair.destination, pair.port, pair.service)
            if peers is None or not any((new.opened, new.closed, new.failed, new.received, new.sent)):
                continue
            series.append([_REPORTERS, labels.tcp(peers), [new.opened, new.closed, new.sent, new.received]])
            if new.opened:
                store.add(CONNECTIONS, ("outbound", "kernel"), new.opened)
            if new.failed:
                series.append([_REPORTERS, labels.tcp(peers, CONNECT_FAILED.flag), [new.failed, new.failed, 0, 0]])
                store.add(REFUSED, (CONNECT_FAILED.code,), new.failed)
        if series:
            store.merge({"tcp": series})
        self._count_refusals(store)
        self._plane.http.collect(store, self._peer_labels)
        store.set(KERNEL_LEFT_OUT, (), len(kernel.left_out))
        self._forget()

    def _count_refusals(self, store: Store) -> None:
        """Add what was refused since the last call to *store* and to the rows of ``nodeagent
        flows``. Raises OSError.
        """
        for refusal in self._plane.kernel.counts.refusals():
            pair = refusal.pair
            count = refusal.count
            peers = self._peers(pair.source, pair.destination)
            named = self._labels(*pair)
            if peers is None or named is None:
                continue
            store.add(POLICY_EVENTS, (_name(peers.server), refusal.policy, "deny"), count)
            store.add(REFUSED, (POLICY_DENIED.code,), count)
            store.merge({"tcp": [[_REPORTERS, labels.tcp(named, POLICY_DENIED.flag), [count, count, 0, 0]]]})
            self._note_refusal(refusal, peers)

    def _note_refusal(self, refusal: Refusals, peers: _Peers) -> None:
        """One row for whom, whom, Service and policy, with its count; those of a client that are the oldest go."""
        pair = refusal.pair
        rows = self._refused.setdefault(pair.source, {})
        key = "-".join(map(str, ("refused", *pair, refusal.policy)))
        before = rows.pop(key, None)
        opened = before.opened if before else refusal.last
        times = refusal.count + (before.times if before else 0)
        told = {
            "id": key,
            "opened": opened,
            "closed": refusal.last,
            "verdict": "deny",
            "reason": POLICY_DENIED.code,
            "policy": refusal.policy,
            "times": times,
            "why": self.path_of(peers.server, pair.port).why,
        }
        rows[key] = _Refusals(opened, times, self._ends(peers, pair.port, pair.service) | told)
        if len(rows) > REFUSALS_KEPT:
            del rows[next(iter(rows))]

    def _add_open(self, totals: dict[CountedPair, Total]) -> None:
        """Add what open connections have carried to *totals*."""
        flows = [flow for flow in self._plane.kernel.record.flows() if flow.opened]
        carried = self._carried(flows)
        for flow in flows:
            pair = CountedPair(flow.source, flow.destination, flow.id.destination[1], flow.service)
            total = totals.get(pair, Total())
            one = carried.get(flow.id, _NOTHING)
            totals[pair] = Total(
                total.opened, total.closed, total.failed, total.received + one.sent, total.sent + one.received
            )

    def _carried(self, flows: list[RecordedFlow]) -> dict[FlowId, CarriedBytes]:
        """Return what open connections have carried, by TCP and past it."""
        found: dict[FlowId, CarriedBytes] = {}
        for source in {flow.source for flow in flows}:
            found.update(self._plane.carried(source))
        bypassed = self._plane.bypassed() if any(flow.bypass for flow in flows) else {}
        for flow in flows:
            there = bypassed.get(SocketEnds(*flow.id))
            back = bypassed.get(SocketEnds(flow.id.destination, flow.id.source))
            if there or back:
                one = found.get(flow.id, _NOTHING)
                found[flow.id] = CarriedBytes(
                    one.sent + (there.sent_bytes if there else 0), one.received + (back.sent_bytes if back else 0)
                )
        return found

    def _forget(self) -> None:
        """Pods that are gone, and have no connection any more, were counted a last time now."""
        live: set[int] = set()
        for flow in self._plane.kernel.record.flows():
            live |= {flow.source, flow.destination}
        gone = set(self._workloads) - set(self._numbers.values()) - live
        if not gone:
            return
        self._plane.kernel.forget(gone)
        for number in gone:
            del self._workloads[number]
            self._refused.pop(number, None)
            self._plane.http.forget(number)
        self._told = {
            pair: total
            for pair, total in self._told.items()
            if pair.source not in gone and pair.destination not in gone
        }

    # -- who is who --

    def _peers(self, client: int, destination: int) -> _Peers | None:
        source = self._workloads.get(client)
        server = self._workloads.get(destination)
        return _Peers(source, server) if source and server else None

    def _judged(self, flow: RecordedFlow, peers: _Peers) -> KernelVerdict:
        """Return what the plan says of a connection, or policy itself where an end has left the kernel path."""
        planned = self._plan.destinations.get(flow.id.destination)
        if planned is not None and planned.pod == peers.server.uid:
            verdict = ALLOWED if planned.verdicts is None else planned.verdicts.get(peers.source.uid)
            if verdict is not None:
                return verdict
        return self._planner.permits(
            peers.source, peers.server, flow.id.destination, policies_of(peers.server, self._entries.get)
        )

    def _service(self, name: str, server: Workload, port: int) -> Service | None:
        found = self._entries.get(f"service/{name or dict(server.services).get(port, '')}")
        return found if isinstance(found, Service) else None

    def _peer_labels(self, source: int, destination: int, service: int, port: int) -> Labels | None:
        return self._labels(source, destination, port, self._plane.kernel.service_name(service))

    def _labels(self, source: int, destination: int, port: int, service: str) -> Labels | None:
        """Return the values of PEER_LABELS, as the proxy gives them for its own connections within the node."""
        client = self._workloads.get(source)
        server = self._workloads.get(destination)
        if client is None or server is None:
            return None
        found = self._service(service, server, port)
        named: Labels = (
            labels.service(found)
            if found
            else (host_port(next(iter(server.addresses), ""), port), UNKNOWN, server.namespace)
        )
        source_side, server_side = (labels.side(one, one.identity, self._cluster) for one in (client, server))
        return labels.peers(source_side, server_side, named, "kernel_attested")


def _name(workload: Workload) -> str:
    """The name under which policies count."""
    return f"{workload.namespace}/{workload.workload}"


def _growth(told: Total, now: Total) -> Total:
    return Total(*(max(after - before, 0) for before, after in _pairs(told, now)))


def _higher(told: Total, now: Total) -> Total:
    return Total(*(max(pair) for pair in _pairs(told, now)))


def _pairs(one: Total, other: Total) -> Iterable[tuple[int, int]]:
    values = ((each.opened, each.closed, each.failed, each.received, each.sent) for each in (one, other))
    return zip(*values, strict=True)
