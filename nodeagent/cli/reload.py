"""``nodeagent reload``: new proxy workers on the same listeners; the old ones drain."""

from __future__ import annotations

import click

from nodeagent.cli.admin import RunningAgent, choosing
from nodeagent.cli.output import NODE, Column, Output, emit, output_option


@click.command()
@choosing
@output_option
def reload(agents: list[RunningAgent], output: Output) -> None:
    """Replace the proxy workers of an agent; open connections finish on the old ones."""
    rows = [{"node": agent.name, **agent.post("/reload")} for agent in agents]
    emit(rows, (NODE, Column("NEW WORKERS", "workers", right=True)), output)
