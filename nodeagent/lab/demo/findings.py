"""What a run of the demo has found, and what of its claims does not hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.lab.demo.agents import Footprint, Paths, Proof
from nodeagent.lab.demo.logs import Collected
from nodeagent.lab.demo.traffic import Latency, Visit
from nodeagent.lab.demo.wiretap import Seen


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the demo shows. ``direct`` is the lab without agents, which shows that what
    is looked for could be found.
    """

    reader: str
    """The random name that requests, answers and the store's data carry."""
    requests: int
    direct: Visit
    agent: Visit
    direct_underlay: Seen
    agent_underlay: Seen
    paths: Paths
    """Captured connections during the visit."""
    proofs: tuple[Proof, ...]
    logs: Collected
    latencies: tuple[Latency, ...]
    footprints: tuple[Footprint, ...]


def broken(found: Findings) -> list[str]:
    """Return each claim that does not hold, with what was found instead; an empty list is what the demo is for."""
    return [*_requests(found), *_underlay(found), *_capture(found), *_identities(found), *_logs(found)]


def _requests(found: Findings) -> Iterator[str]:
    ways = [("without agents", found.direct), ("through the agents", found.agent)]
    ways += [(f"without agents, {each.what}", each.direct) for each in found.latencies]
    ways += [(f"through the agents, {each.what}", each.agent) for each in found.latencies]
    for way, visit in ways:
        if visit.failures:
            yield f"requests failed {way}: {len(visit.failures)}, the first: {visit.failures[0]}"
    if not found.agent.failures and set(found.agent.versions) != {"v1", "v2"}:
        yield f"reviews v1 and v2 should both have answered, but: {dict(found.agent.versions)}"


def _underlay(found: Findings) -> Iterator[str]:
    seen = found.agent_underlay
    if seen.marked or seen.marked_bytes:
        yield (
            f"plaintext on the underlay: {seen.marked} of {seen.packets} packets between the agents show {found.reader}"
        )
    if not seen.records:
        yield f"nothing encrypted on the underlay: no TLS record in {seen.packets} packets between the agents"
    if not found.direct_underlay.marked:
        yield (
            f"tcpdump proves nothing: without agents too it has seen no {found.reader} in "
            f"{found.direct_underlay.packets} packets"
        )
    if missed := seen.dropped or found.direct_underlay.dropped:
        yield f"tcpdump missed {missed} packets: is the machine overloaded? try again"


def _capture(found: Findings) -> Iterator[str]:
    outbound = {path: count for (direction, path), count in found.paths.items() if direction == "outbound"}
    for path in ("proxy-local", "proxy-mtls"):
        if not outbound.get(path):
            yield f"nothing captured on path {path}: outbound connections were {outbound or 'none'}"
    if others := {
        path: count for path, count in outbound.items() if count and path not in ("proxy-local", "proxy-mtls")
    }:
        yield f"captured, but neither kept on its node nor encrypted: {others}"


def _identities(found: Findings) -> Iterator[str]:
    for proof in found.proofs:
        if not proof.holds:
            proved = (
                f"client {_listed(proof.clients)}, server {_listed(proof.servers)}, by {_listed(proof.policies)}, "
                f"{proof.count} times"
            )
            yield f"identities of {proof.hop.source} -> {proof.hop.destination} are not as expected: {proved}"


def _logs(found: Findings) -> Iterator[str]:
    if not found.logs.written:
        yield f"the frontend has written no line about {found.reader}: nothing is shown of its log"
    elif found.logs.delivered != found.logs.written:
        yield f"of {found.logs.written} lines of the frontend's log {found.logs.delivered} came to the sink as its own"


def _listed(values: frozenset[str]) -> str:
    return " and ".join(sorted(values)) or "nobody"
