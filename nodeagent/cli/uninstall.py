"""``nodeagent uninstall``: what a daemon leaves for its successor is taken away."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from nodeagent.cli.output import Column, Output, emit, output_option
from nodeagent.cli.run import AGENT_YAML
from nodeagent.errors import KernelError

COLUMNS: Final = (Column("REMOVED", "kind"), Column("WHERE IT WAS", "path"))


@click.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=AGENT_YAML,
    show_default=True,
    help="The configuration of the daemon that ran.",
)
@output_option
def uninstall(path: Path, output: Output) -> None:
    """Detach every program and remove every pin, socket and mark of a daemon that does not run any more."""
    if os.geteuid():
        raise KernelError("pins and links are root's: run it as root")
    from nodeagent import config, uninstall

    removed = uninstall.uninstall(config.load(path))
    emit([asdict(each) for each in removed], COLUMNS, output)
    if output == "table":
        click.echo(
            "\nThis node's pods are captured no more: what policies refuse is open to who reaches it, and "
            "nothing leaves with an identity."
        )
