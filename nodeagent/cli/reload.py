"""``nodeagent reload``: new proxy workers on the same listeners; the old ones drain."""

from __future__ import annotations

import click

from nodeagent.cli.admin import admin_option, find
from nodeagent.cli.output import NODE, Column, Output, emit, output_option


@click.command()
@admin_option
@output_option
def reload(admin: str | None, output: Output) -> None:
    """Replace the proxy workers of running agents; open connections finish on the old ones."""
    rows = [{"node": agent.node, **agent.post("/reload")} for agent in find(admin)]
    emit(rows, (NODE, Column("NEW WORKERS", "workers", right=True)), output)
