"""``nodeagent run``: the daemon, in the foreground."""

from __future__ import annotations

import os
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
@click.option(
    "--replace",
    is_flag=True,
    help="Begin in the background, take the node over from the daemon that runs, and return when that is done.",
)
@click.pass_context
def run(context: click.Context, path: Path, replace: bool) -> None:
    """Run the daemon until SIGTERM."""
    from nodeagent import agent, config
    from nodeagent.cli import background
    from nodeagent.service_manager import ServiceManager
    from nodeagent.telemetry import log_writer

    settings, faults = config.load_to_start(path)
    log_writer.try_to_open(settings.telemetry.access_log.path)  # a pipe stays open as long as this process runs
    waiting = background.begin() if replace else -1
    context.exit(agent.main(settings, path, ServiceManager.of(os.environ, waiting), faults))
