"""The estimate for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from nodeagent.compare.estimate.amount import Amount
from nodeagent.compare.estimate.sums import Estimate, Saving, Sum

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def tables(found: Estimate) -> list[Table | Text]:
    """Return what to print: sidecars by namespace and kind, the change, and notes."""
    shown: list[Table | Text] = [_sidecars(found), _changes(found)]
    agent = found.agent
    taken = (
        f"{_memory(agent.base_bytes)} a node, {_memory(agent.pod_bytes)} a pod, "
        f"{float(agent.requested_cores):g} cores requested"
    )
    used = (
        f"{float(agent.idle_cores):g} cores at rest and {float(agent.cpu_share):g} of the CPU that sidecars "
        "need for the same traffic"
    )
    shown.append(
        Text(
            f"Pods: {found.pods:,}; nodes: {found.nodes or 'not known'}. An agent is taken for {taken}; in use {used}.",
            style="dim",
        )
    )
    return [*shown, *(Text(f"note: {note}") for note in found.notes)]


def _sidecars(found: Estimate) -> Table:
    table = Table(title="sidecars now", title_style="bold")
    table.add_column("namespace or kind")
    for name in ("pods", "sidecars", "CPU requested", "memory requested", "CPU used", "memory used"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in found.namespaces.items():
        table.add_row(*_row(name, each))
    table.add_section()
    for kind, each in found.kinds.items():
        table.add_row(*_row(kind, each))
    table.add_section()
    table.add_row(*_row("all", found.total), style="bold")
    return table


def _row(name: str, each: Sum) -> Iterable[Text]:
    used = (_cores(each.used), _memory(each.used.memory)) if each.measured else ("-", "-")
    printable = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
    return map(
        Text,
        (
            printable,
            f"{each.pods:,}",
            f"{each.sidecars:,}",
            _cores(each.requested),
            _memory(each.requested.memory),
            *used,
        ),
    )


def _changes(found: Estimate) -> Table:
    table = Table(title="with one agent per node", title_style="bold")
    table.add_column("")
    for name in ("sidecars", "agents", "saved"):
        table.add_column(f"CPU: {name}", justify="right", no_wrap=True)
    for name in ("sidecars", "agents", "saved"):
        table.add_column(f"memory: {name}", justify="right", no_wrap=True)
    rows = (
        ("requested", found.requested),
        ("used", found.used),
        (f"not injected yet: {found.uninjected:,}", found.injecting if found.uninjected else None),
    )
    for name, change in rows:
        table.add_row(name, *(_change(change) if change else ["-"] * 6))
    return table


def _change(change: Saving) -> list[str]:
    amounts = (change.sidecars, change.agents, change.saved)
    return [_cores(each) for each in amounts] + [_memory(each.memory) for each in amounts]


def _cores(amount: Amount) -> str:
    return f"{float(amount.cores):,.3f}".rstrip("0").rstrip(".")


def _memory(count: object) -> str:
    value = float(count)  # type: ignore[arg-type]
    for unit, size in _UNITS:
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} B"
