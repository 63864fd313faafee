"""The findings as a person reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nodeagent.istio import STATUS_PORT
from nodeagent.lab.demo.agents import Proof
from nodeagent.lab.demo.application import IDENTITIES
from nodeagent.lab.demo.findings import Findings
from nodeagent.lab.demo.traffic import REQUESTS_PER_ROUND, ROUNDS, Visit
from nodeagent.lab.demo.wiretap import Seen

_PATHS: Final = {
    "proxy-local": "same node: handed over in the agent",
    "proxy-mtls": "other node: TLS 1.3 both ways",
    "proxy-plaintext": "the nodes' own health probes",
}
_MEANS: Final = {"kernel_attested": "kernel", "mutual_tls": "mTLS"}


def show(console: Console, found: Findings) -> None:
    """Print *found*, one paragraph a question."""
    _pages(console, found)
    _connections(console, found)
    _identities(console, found)
    _underlay(console, found)
    _logs(console, found)
    _latency(console, found)
    _memory(console, found)


def show_next(console: Console) -> None:
    """Print the commands with which to go on."""
    _title(console, "Where to look next", "the same lab, to stay")
    agent = _command("nodeagent", "-m nodeagent")
    demo = f"{_relative(Path(sys.executable))} -m nodeagent.lab.demo"
    commands = {
        "up": f"{demo} --yaml | {agent} lab up -f - --mode nodeagent",
        "traffic": f"{agent} lab exec -n bookinfo visitor -- python3 /app/visitor.py me 100 10 http://frontend/",
        "pods": f"{agent} get pods",
        "live": f"{agent} flows -f",
        "logs": f"{agent} lab logs -f -n bookinfo deploy/frontend",
        "metrics": f"{agent} lab exec node1 -- curl -s localhost:{STATUS_PORT}/metrics",
        "down": f"{agent} lab down",
    }
    for purpose, command in commands.items():
        console.print(Text.assemble("  ", (f"{purpose:<9}", "dim"), (command, "cyan")), soft_wrap=True)


def _pages(console: Console, found: Findings) -> None:
    versions = found.agent.versions
    good = len(found.agent.milliseconds) - len(found.agent.failures)
    _title(console, "What came back", f"through the agents, for the reader named {found.reader}")
    console.print(
        f"  {max(good, 0)} of {found.requests} pages as they should be: {versions['v1']} with reviews v1, "
        f"{versions['v2']} with v2"
    )


def _connections(console: Console, found: Findings) -> None:
    _title(console, "Captured connections by path", "opened meanwhile, both nodes")
    table = _table(("path", ""), ("from pods", "r"), ("to pods", "r"), ("", ""))
    for path in sorted({path for _, path in found.paths}):
        counts = [str(found.paths[direction, path] or "·") for direction in ("outbound", "inbound")]
        table.add_row(path, *counts, Text(_PATHS.get(path, ""), "dim"))
    console.print(_indented(table))


def _identities(console: Console, found: Findings) -> None:
    _title(console, "Identity that each side proved", f"…: {IDENTITIES}")
    table = _table(("hop", ""), ("client", ""), ("server", ""), ("proved by", ""), ("carried", "r"))
    for proof in found.proofs:
        table.add_row(f"{proof.hop.source} → {proof.hop.destination}", *_proved(proof))
    console.print(_indented(table))


def _proved(proof: Proof) -> tuple[str, str, str, str]:
    clients, servers = (
        "…" + _listed([name.removeprefix(IDENTITIES) for name in side]) for side in (proof.clients, proof.servers)
    )
    unit = "request" if proof.hop.protocol == "http" else "TCP connection"
    return (
        clients,
        servers,
        _listed([_MEANS.get(policy, policy) for policy in proof.policies]),
        f"{proof.count} {unit}" if proof.count == 1 else f"{proof.count} {unit}s",
    )


def _underlay(console: Console, found: Findings) -> None:
    _title(console, "Between the nodes", "tcpdump; the reader's name is in requests, answers and the store's data")
    table = _table(("", ""), ("packets", "r"), ("TLS records", "r"), ("showing the name", "r"), ("its bytes", "r"))
    table.add_row("without agents", *_seen(found.direct_underlay), style="dim")
    table.add_row("with agents", *_seen(found.agent_underlay), style="bold")
    console.print(_indented(table))


def _seen(seen: Seen) -> tuple[str, ...]:
    return tuple(f"{count:,}" for count in (seen.packets, seen.records, seen.marked, seen.marked_bytes))


def _logs(console: Console, found: Findings) -> None:
    _title(console, "Logs", "the frontend's standard output, a line a page")
    console.print(
        f"  {found.logs.delivered} of {found.logs.written} lines collected by its node's agent, as the pod's own; "
        "no shipper in the pod"
    )


def _latency(console: Console, found: Findings) -> None:
    _title(
        console,
        "Latency",
        f"milliseconds, {ROUNDS * REQUESTS_PER_ROUND} requests each way, over one connection at a time",
    )
    table = _table(
        ("", ""), ("direct p50", "r"), ("p90", "r"), ("agents p50", "r"), ("p90", "r"), ("ratio of p50", "r")
    )
    for each in found.latencies:
        ratio = each.agent.percentile(50) / each.direct.percentile(50)
        table.add_row(each.what, *_percentiles(each.direct), *_percentiles(each.agent), f"[bold]{ratio:.1f} ×")
    console.print(_indented(table))
    console.print("  [dim]Both in turn on a noisy machine: trust the ratio. More by make bench.")


def _percentiles(visit: Visit) -> tuple[str, str]:
    return f"{visit.percentile(50):.2f}", f"[dim]{visit.percentile(90):.2f}"


def _memory(console: Console, found: Findings) -> None:
    _title(console, "Memory of the agents", "PSS of all their processes")
    for each in found.footprints:
        console.print(
            f"  {each.node}  [bold]{each.pss / 1e6:.0f} MB[/] [dim]in {each.processes} processes, for {each.pods} pods"
        )


def _title(console: Console, title: str, remark: str) -> None:
    console.print(f"\n[bold]{title}[/]  [dim]{remark}", soft_wrap=True)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for title, justify in columns:
        table.add_column(title, justify="right" if justify else "left", overflow="fold")
    return table


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2), expand=False)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(sorted(values)) or "nobody"


def _command(script: str, module: str) -> str:
    """Return how this environment's *script* is called from the current folder, or the *module*
    behind it where that is not installed.
    """
    path = Path(sys.executable).parent / script
    return _relative(path) if path.exists() else f"{_relative(Path(sys.executable))} {module}"


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
