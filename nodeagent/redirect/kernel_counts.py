"""What the kernel counted of connections on its path: bytes and connections by pair of pods, and
refusals with the policy that refused. Read from the map ``flow_totals`` and from open flows; control
makes Istio's TCP metrics of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from nodeagent.redirect import layout
from nodeagent.redirect.kernel_record import CountedPair, Record, Refusals, Total, carried
from nodeagent.redirect.maps import Map

Denials = Callable[[], Mapping[tuple[int, int, int], str]]
"""Returns the policies that refuse now, by client's and server's number and port."""


class KernelCounts:
    """The counts since it was made; pods are numbers, as in the maps. One thread only."""

    def __init__(
        self, opened: Mapping[str, Map], record: Record, service_name: Callable[[int], str], denials: Denials
    ) -> None:
        """*opened*: maps by name; *service_name* says whose a Service's number is. Raises OSError."""
        self._maps = opened
        self._record = record
        self._service_name = service_name
        self._denials = denials
        self._untold: list[Refusals] = []
        self._base = self._read_totals()
        self._refused = {key: total.refused for key, (_, total) in self._base.items()}
        """Refusals that were told already."""

    def totals(self) -> dict[CountedPair, Total]:
        """Return what was counted since this object was made; bytes as soon as the client's end is
        closed. Raises OSError.
        """
        totals: dict[CountedPair, Total] = {}
        for key, (named, now) in self._read_totals().items():
            total = Total(now.opened, now.closed, now.failed, now.received, now.sent)
            base = self._base.get(key)
            if base is not None:
                then = base[1]
                total = Total(
                    now.opened - then.opened,
                    now.closed - then.closed,
                    now.failed - then.failed,
                    now.received - then.received,
                    now.sent - then.sent,
                )
            pair = self._pair(named)
            totals[pair] = _sum(totals.get(pair, Total()), total)
        for key, value in self._maps["kernel_flows"].items():
            flow = layout.KernelFlow.from_buffer_copy(value)
            if flow.client_closed:
                port = layout.FlowKey.from_buffer_copy(key).destination_port
                pair = CountedPair(flow.source, flow.destination, port, self._service_name(flow.service))
                received, sent = carried(flow)
                totals[pair] = _sum(totals.get(pair, Total()), Total(received=received, sent=sent))
        return totals

    def forget(self, gone: Collection[int]) -> None:
        """Delete the totals of pods that are *gone*, after a last reading. Raises OSError."""
        for key, (named, _) in self._read_totals().items():
            if named.source in gone or named.destination in gone:
                self._maps["flow_totals"].drop(key)
                self._base.pop(key, None)
                self._refused.pop(key, None)

    def services(self) -> set[int]:
        """Return the numbers of the Services by which something is counted yet. Raises OSError."""
        flows = (layout.KernelFlow.from_buffer_copy(value) for _, value in self._maps["kernel_flows"].items())
        return {named.service for named, _ in self._read_totals().values()} | {flow.service for flow in flows}

    def refusals(self) -> list[Refusals]:
        """Return what was refused since the last call. Raises OSError."""
        self.note_refusals()
        told = self._untold
        self._untold = []
        return told

    def note_refusals(self) -> None:
        """Tell what was refused by the verdicts that are in force; to be called before these change."""
        fresh = [
            (key, named, total)
            for key, (named, total) in self._read_totals().items()
            if total.refused > self._refused.get(key, 0)
        ]
        policies = self._denials() if fresh else {}
        for key, named, total in fresh:
            policy = policies.get((named.source, named.destination, named.port), "")
            self._untold.append(
                Refusals(
                    self._pair(named),
                    policy,
                    total.refused - self._refused.get(key, 0),
                    self._record.unix(total.refused_at),
                )
            )
            self._refused[key] = total.refused

    def _pair(self, named: layout.FlowTotalKey) -> CountedPair:
        return CountedPair(named.source, named.destination, named.port, self._service_name(named.service))

    def _read_totals(self) -> dict[bytes, tuple[layout.FlowTotalKey, layout.FlowTotal]]:
        return {
            key: (layout.FlowTotalKey.from_buffer_copy(key), layout.FlowTotal.from_buffer_copy(value))
            for key, value in self._maps["flow_totals"].items()
        }


def _sum(one: Total, other: Total) -> Total:
    return Total(
        one.opened + other.opened,
        one.closed + other.closed,
        one.failed + other.failed,
        one.received + other.received,
        one.sent + other.sent,
    )
