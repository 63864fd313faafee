"""``nodeagent run``: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

AGENT_YAML: Final = Path("/etc/nodeagent/agent.yaml")


@click.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=AGENT_YAML,
    show_default=True,
    help="The daemon's configuration.",
)
@click.pass_context
def run(context: click.Context, path: Path) -> None:
    """Run the daemon until SIGTERM."""
    from nodeagent import agent, config

    context.exit(agent.main(config.load(path), path))
