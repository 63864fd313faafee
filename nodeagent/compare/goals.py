"""Which ratios a comparison tells, and what this project wants of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from nodeagent.compare.load import Sample
from nodeagent.compare.logs.beside import ProxyBesideLogs
from nodeagent.compare.logs.measure import LogSample
from nodeagent.compare.logs.run import LogLoad
from nodeagent.compare.run import Results

MEGABYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure; ``least``: more is better. ``must`` and ``aim`` are in ``unit``, None: it is told,
    and nothing is asked of it.
    """

    name: str
    must: float | None
    aim: float | None
    least: bool
    unit: str = "×"

    def verdict(self, value: float) -> str | None:
        """Return how *value* does: ``aim`` (reaches all that is wanted), ``must`` (what is
        demanded), or ``missed``; None: nothing is asked of it.
        """

        def reaches(limit: float) -> bool:
            return value >= limit if self.least else value <= limit

        if self.must is None:
            return None
        if not reaches(self.must):
            return "missed"
        return "aim" if self.aim is None or reaches(self.aim) else "must"


Figure = Callable[[Sample], float]
Way = tuple[str, str, str, int]
"""Mode, variant, workload, connections."""
Comparison = tuple[Goal, Way, Way, Figure]
"""Our way, theirs, figure."""


def _rate(sample: Sample) -> float:
    return sample.rate


def _bits(sample: Sample) -> float:
    return sample.bits_per_second or 0.0


def _p50(sample: Sample) -> float:
    return sample.at(50)


def _p99(sample: Sample) -> float:
    return sample.at(99)


def _cpu(sample: Sample) -> float:
    return sample.cpu_seconds / sample.requests if sample.requests else 0.0


def _against(
    theirs: str,
    ours: str,
    rows: Sequence[tuple[str, float | None, float | None, bool, str, int, Figure]],
    variant: str = "",
) -> Iterator[Comparison]:
    for name, must, aim, least, workload, connections, figure in rows:
        yield (
            Goal(name, must, aim, least),
            (ours, variant, workload, connections),
            (theirs, "", workload, connections),
            figure,
        )


def _sidecar_rows() -> Iterator[Comparison]:
    for workload, connections in (("http", 1), ("http", 32), ("tcp", 32), ("chain5", 1), ("cross-node", 32)):
        what, figure, least = ("p50", _p50, False) if connections == 1 else ("requests/s", _rate, True)
        goal = Goal(
            f"own sidecars / Envoy sidecars: {workload}, {connections} "
            f"connection{'s' if connections > 1 else ''}, {what}",
            None,
            None,
            least,
        )
        yield goal, ("sidecar", "", workload, connections), ("envoy", "", workload, connections), figure


COMPARISONS: Final[Sequence[Comparison]] = (
    *_against(
        "envoy",
        "nodeagent",
        (
            ("agent / Envoy sidecars: same node, 32 connections, requests/s", 2.3, 3, True, "http", 32, _rate),
            ("agent / Envoy sidecars: same node, 1 connection, p50", 0.50, 0.42, False, "http", 1, _p50),
            ("agent / Envoy sidecars: same node, 32 connections, p99", 1, 0.5, False, "http", 32, _p99),
            (
                "agent / Envoy sidecars: under L7 policy, 32 connections, requests/s",
                None,
                None,
                True,
                "http-authz",
                32,
                _rate,
            ),
            ("agent / Envoy sidecars: TCP port, 32 connections, requests/s", None, None, True, "tcp", 32, _rate),
            (
                "agent / Envoy sidecars: new connection per request, 32, requests/s",
                1.5,
                2,
                True,
                "tcp-churn",
                32,
                _rate,
            ),
            ("agent / Envoy sidecars: five services, 1 connection, p50", None, None, False, "chain5", 1, _p50),
            (
                "agent / Envoy sidecars: five services, 32 connections, requests/s",
                None,
                None,
                True,
                "chain5",
                32,
                _rate,
            ),
            (
                "agent / Envoy sidecars: between nodes, mTLS, 32 connections, requests/s",
                1.8,
                2.2,
                True,
                "cross-node",
                32,
                _rate,
            ),
            (
                "agent / Envoy sidecars: between nodes, mTLS, 32 connections, CPU a request",
                0.45,
                0.35,
                False,
                "cross-node",
                32,
                _cpu,
            ),
            (
                "agent / Envoy sidecars: between nodes, mTLS, 1 connection, p50",
                0.70,
                0.60,
                False,
                "cross-node",
                1,
                _p50,
            ),
            ("agent / Envoy sidecars: between nodes, mTLS, 32 connections, p99", 1, 0.5, False, "cross-node", 32, _p99),
            ("agent / Envoy sidecars: TCP stream, one node, bits/s", 0.5, 1, True, "bulk", 1, _bits),
            ("agent / Envoy sidecars: HTTP/2, 1 × 32 streams, requests/s", 1.5, 3, True, "h2", 1, _rate),
            ("agent / Envoy sidecars: HTTP/2, 8 × 32 streams, requests/s", 1.5, 2.5, True, "h2-many", 8, _rate),
            ("agent / Envoy sidecars: HTTP/2, 8 × 32 streams, p99", 1, 0.5, False, "h2-many", 8, _p99),
            (
                "agent / Envoy sidecars: HTTP/2 between nodes, mTLS, 8 × 32 streams, requests/s",
                1.2,
                1.8,
                True,
                "h2-cross-node",
                8,
                _rate,
            ),
            ("agent / Envoy sidecars: HTTP/2, 1 GiB in one stream, bits/s", 0.5, 1, True, "h2-bulk", 1, _bits),
            ("agent / Envoy sidecars: gRPC, unary, 1 × 32 calls, calls/s", 1.5, 2.5, True, "grpc", 1, _rate),
            (
                "agent / Envoy sidecars: gRPC, server streams of 1 KiB messages, messages/s",
                1,
                2,
                True,
                "grpc-stream",
                1,
                _rate,
            ),
        ),
    ),
    (
        Goal("agent: HTTP/2, 1 × 32 streams / HTTP/1.1, 32 connections, requests/s", 0.9, 1.5, True),
        ("nodeagent", "", "h2", 1),
        ("nodeagent", "", "http", 32),
        _rate,
    ),
    *_against(
        "direct",
        "nodeagent",
        (
            ("agent / direct: five services, 1 connection, p50", 1.8, None, False, "chain5", 1, _p50),
            (
                "agent / direct: between nodes, new connection per request, 32, requests/s",
                None,
                0.5,
                True,
                "cross-node-churn",
                32,
                _rate,
            ),
        ),
    ),
    *_against(
        "direct",
        "nodeagent-kernel",
        (
            ("kernel path / direct: 1 connection, p50", 1.03, None, False, "tcp", 1, _p50),
            ("kernel path / direct: 32 connections, requests/s", 0.97, None, True, "tcp", 32, _rate),
            ("kernel path with HTTP metrics / direct: 32 connections, requests/s", 0.90, None, True, "http", 32, _rate),
            ("kernel path / direct: new connection per request, 1, p50", 1.15, None, False, "tcp-churn", 1, _p50),
            ("kernel path / direct: five services, 1 connection, p50", 1.1, None, False, "chain5", 1, _p50),
            ("kernel path / direct: TCP stream, bits/s", 0.95, None, True, "bulk", 1, _bits),
        ),
    ),
    *_against(
        "direct",
        "nodeagent-bypass",
        (("agent with the bypass / direct: five services, 1 connection, p50", 1.8, None, False, "chain5", 1, _p50),),
        variant="proxy",
    ),
    *_against(
        "nodeagent",
        "nodeagent-bypass",
        (
            ("agent with the bypass / without: same node, 1 connection, p50", None, None, False, "http", 1, _p50),
            (
                "agent with the bypass / without: same node, 32 connections, requests/s",
                None,
                None,
                True,
                "http",
                32,
                _rate,
            ),
        ),
        variant="proxy",
    ),
    *_against(
        "direct",
        "nodeagent-bypass",
        (("bypass / direct: 32 connections, requests/s", 1.7, None, True, "http", 32, _rate),),
    ),
    *_against(
        "direct",
        "envoy",
        (("Envoy sidecars / direct: five services, 1 connection, p50", None, None, False, "chain5", 1, _p50),),
    ),
    *_sidecar_rows(),
    (
        Goal("agent: policy of method, path, principal / none, 32, requests/s", 0.9, None, True),
        ("nodeagent", "", "http-authz", 32),
        ("nodeagent", "", "http", 32),
        _rate,
    ),
    *(
        (
            Goal(f"agent: delivery over the network / inside the server's pod, {what}", None, None, least),
            ("nodeagent", "over the network", workload, connections),
            ("nodeagent", "", workload, connections),
            figure,
        )
        for what, workload, connections, figure, least in (
            ("1 connection, p50", "http", 1, _p50, False),
            ("32 connections, requests/s", "http", 32, _rate, True),
            ("TCP port, 32 connections, requests/s", "tcp", 32, _rate, True),
            ("new connection per request, 32, requests/s", "tcp-churn", 32, _rate, True),
        )
    ),
    *(
        (
            Goal(f"agent: {count} policies in the cluster / 1", 0.9, None, True),
            ("nodeagent", f"{count} policies", "http-authz", 32),
            ("nodeagent", "", "http-authz", 32),
            _rate,
        )
        for count in ("100", "10,000")
    ),
)
"""What is compared, round by round: the two were measured within seconds of each other."""


def compared(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    """Yield each goal that was measured with its values: of a ratio one a round, of what is
    measured once a single one.
    """
    yield from _rounds(results)
    yield from _scale(results)
    yield from _singles(results)
    yield from _logs(results)


def _rounds(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    samples: Mapping[Way, list[Sample]] = {
        (cell.mode.name, cell.mode.variant, cell.workload, cell.connections): found
        for cell, found in results.samples.items()
        if cell.rate is None
    }
    for goal, ours, theirs, figure in COMPARISONS:
        pairs = zip(samples.get(ours, ()), samples.get(theirs, ()), strict=False)
        ratios = [figure(mine) / base for mine, base in ((mine, figure(other)) for mine, other in pairs) if base]
        if ratios:
            yield goal, ratios


def _scale(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    found = {(each.mode, each.pods): each for each in results.scale}
    counts = sorted({each.pods for each in results.scale})
    for pods in counts:
        agent, envoys, own = (found.get((mode, pods)) for mode in ("nodeagent", "envoy", "sidecar"))
        if agent and envoys and envoys.memory_bytes:
            must = 1 / 50 if pods == 100 else None
            yield (
                Goal(f"agent / Envoy sidecars: memory, {pods} pods", must, None, False),
                [agent.memory_bytes / envoys.memory_bytes],
            )
        if own and envoys and envoys.memory_bytes:
            yield (
                Goal(f"own sidecars / Envoy sidecars: memory, {pods} pods", None, None, False),
                [own.memory_bytes / envoys.memory_bytes],
            )
    agents = [each for each in results.scale if each.mode == "nodeagent"]
    if agents:
        most = agents[-1]
        yield Goal(f"agent: memory, {most.pods} pods", 130, None, False, "MB"), [most.memory_bytes / MEGABYTE]
        yield Goal(f"agent: {most.pods} pods enrolled, from its start", 2, None, False, "s"), [most.ready_seconds]
        yield Goal(f"agent: idle CPU, {most.pods} pods", 0.5, None, False, "% of a core"), [most.idle_cpu_percent]


def _singles(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    if micro := results.micro:
        yield Goal("10,000 policies, 1,000 workloads compiled", 1, None, False, "s"), [micro.compile_seconds]
        yield Goal("one changed policy among them", 50, None, False, "ms"), [1000 * micro.change_seconds]
        yield Goal("JWT, ES256, added to a request", 60, None, False, "µs"), [micro.jwt_microseconds]
        yield Goal("the same token again", 60, 10, False, "µs"), [micro.jwt_cached_microseconds]


def _beside_logs(measured: Sequence[ProxyBesideLogs]) -> Iterator[tuple[Goal, list[float]]]:
    """Yield what logs at full load do to the proxy on their core: the agent's own, and another's in their place."""
    for name, whose, by, must, aim in (
        ("nodeagent", "", "", 1.2, 1.05),
        ("rsyslog", " of rsyslog", " by rsyslog", None, None),
    ):
        if found := [each for each in measured if each.shipper == name and _p99(each.without)]:
            goal = Goal(f"agent: 2,000 requests/s, p99, under full log load{whose} / without", must, aim, False)
            yield goal, [_p99(each.under) / _p99(each.without) for each in found]
            told = f"logs: delivered{by} while the proxy was measured"
            yield (
                Goal(told, None, None, True, "thousand lines/s"),
                [each.logs.lines_per_second / 1000 for each in found],
            )


def _logs(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    samples = {(cell.shipper.name, cell.load): found for cell, found in results.logs.items()}

    def against(
        theirs: str, load: LogLoad, figure: Callable[[LogSample], float], goal: Goal
    ) -> Iterator[tuple[Goal, list[float]]]:
        pairs = zip(samples.get(("nodeagent", load), ()), samples.get((theirs, load), ()), strict=False)
        if ratios := [figure(ours) / base for ours, other in pairs if (base := figure(other))]:
            yield goal, ratios

    for theirs, must, aim in (("rsyslog", 6, 12), ("syslog-ng", 4, 8), ("otelcol", 4, 8)):
        goal = Goal(f"logs / {theirs}: plain JSON, lines/s", must, aim, True)
        yield from against(theirs, "plain", lambda each: each.lines_per_second, goal)
        told = Goal(f"logs / {theirs}: plain JSON, CPU a line", None, None, False)
        yield from against(theirs, "plain", lambda each: each.cpu_us_per_line, told)
    goal = Goal("logs / rsyslog: 10,000 lines/s over 20 files, CPU", 0.3, 0.1, False)
    yield from against("rsyslog", "steady", lambda each: each.cpu_percent, goal)
    if found := samples.get(("nodeagent", "cri")):
        yield (
            Goal("logs: a runtime's format, CPU a line", 2.5, 1.2, False, "µs"),
            [each.cpu_us_per_line for each in found],
        )
    grown: tuple[tuple[LogLoad, str], ...] = (
        ("down", "ten minutes' lines with the sink down"),
        ("busy", "ten minutes' lines with a sink that answers 429"),
        ("files", "5,000 files came and went"),
    )
    for load, words in grown:
        if rows := samples.get(("nodeagent", load)):
            yield (
                Goal(f"logs: memory's growth, {words}", 5, 1, False, "MB"),
                [each.growth_bytes / MEGABYTE for each in rows],
            )
    yield from _beside_logs(results.beside_logs)
    ours = chain.from_iterable(rows for (name, _), rows in samples.items() if name == "nodeagent")
    if memory := [each.memory_bytes for each in ours]:
        yield Goal("logs: memory above a daemon without, at most", 40, 25, False, "MB"), [max(memory) / MEGABYTE]
