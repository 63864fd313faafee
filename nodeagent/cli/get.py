"""``nodeagent get``: what running agents believe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from nodeagent.cli.admin import RunningAgent, choosing
from nodeagent.cli.output import NODE, Column, Output, Row, emit, listed, output_option, until


def _paths(paths: Mapping[str, str]) -> str:
    """Return ports by path, without the reasons: those are in the other formats."""
    by_path: dict[str, list[str]] = {}
    for port, words in paths.items():
        by_path.setdefault(words.partition(":")[0], []).append(port)
    return " ".join(f"{path}:{','.join(ports)}" for path, ports in sorted(by_path.items()))


def _seconds(value: float) -> str:
    return f"{value:.1f}s" if value else ""


def _way(delivery: str) -> str:
    return delivery.partition(":")[0]


COLUMNS: Final = {
    "pods": (
        *(
            Column("NAMESPACE", "namespace"),
            Column("POD", "pod"),
            Column("STATE", "state"),
            Column("WHY", "why", wrap=True, extra=True),
            Column("MTLS", "mode"),
            Column("WHEN DEAD", "when_dead"),
            Column("PATHS", "paths", _paths, wrap=True),
            Column("DELIVERY", "delivery", _way, extra=True),
            Column("ADDRESSES", "addresses", listed, wrap=True, extra=True),
        ),
        *(
            Column("IDENTITY", "identity", wrap=True, extra=True),
            Column("CONNECTIONS", "connections", right=True, extra=True),
        ),
        *(
            Column("LISTENERS", "listeners", right=True, extra=True),
            Column("REPAIRED", "repaired", right=True, extra=True),
        ),
        Column("FAULTS", "faults", listed, wrap=True),
    ),
    "certs": (
        *(
            Column("IDENTITY", "identity", wrap=True),
            Column("SERIAL", "serial", extra=True),
            Column("EXPIRES IN", "not_after", until, right=True),
        ),
        *(Column("RENEWED IN", "renew_at", until, right=True), Column("ERROR", "error", wrap=True)),
    ),
    "policies": (
        *(
            Column("KIND", "kind"),
            Column("POLICY", "policy"),
            Column("ACTION", "action"),
            Column("SELECTOR", "selector", wrap=True),
        ),
        *(
            Column("SCOPE", "scope", extra=True),
            Column("PODS", "pods", right=True),
            Column("STATE", "state", wrap=True),
        ),
        Column("FILE", "file", wrap=True, extra=True),
    ),
    "routes": (
        *(Column("SERVICE", "service"), Column("PORT", "port", right=True), Column("MATCH", "match")),
        *(Column("CLUSTER", "cluster", wrap=True, extra=True), Column("BALANCE", "balance")),
    ),
    "endpoints": (
        *(Column("SERVICE", "service"), Column("PORT", "port", right=True), Column("PROTOCOL", "protocol")),
        *(Column("ADDRESSES", "addresses", listed, wrap=True), Column("ENDPOINTS", "endpoints", listed, wrap=True)),
    ),
    "logs": (
        *(Column("NAMESPACE", "namespace"), Column("POD", "pod"), Column("CONTAINER", "container")),
        *(Column("PATH", "path", wrap=True), Column("FILE", "file", wrap=True, extra=True)),
        *(Column("STATE", "state"), Column("SIZE", "size", right=True), Column("SETTLED", "settled", right=True)),
        *(Column("LAG", "lagBytes", right=True), Column("FOR", "lagSeconds", _seconds, right=True)),
        *(Column("PARSER", "parser", extra=True), Column("SINKS", "sinks", listed, wrap=True)),
        Column("WHY", "why", wrap=True),
    ),
}
"""What can be asked for -> the columns of its table."""
_PAGES: Final = {"pods": "/pods?all=true", "logs": "/logs/files"}
"""Where that is not the page of its name: a person misses what is not captured, or not read."""


@click.command()
@click.argument("what", type=click.Choice(list(COLUMNS)))
@choosing
@output_option
def get(what: str, agents: list[RunningAgent], output: Output) -> None:
    """Print what running agents believe: their pods, certificates, policies, routes, endpoints, or files of logs."""
    rows: list[Row] = []
    for agent in agents:
        rows += [{"node": agent.name, **row} for row in agent.rows(_PAGES.get(what, f"/{what}"))]
    columns = COLUMNS[what]
    emit(rows, (NODE, *columns) if len(agents) > 1 else columns, output)
