"""``nodeagent run``: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), default="/etc/nodeagent/agent.yaml", show_default=True, help="The daemon's configuration."
)
@click.pass_context
def run(context: click.Context, path: Path) -> None:
    """Run the daemon until SIGTERM."""
    from nodeagent import agent, config

    context.exit(agent.main(config.load(path)))
