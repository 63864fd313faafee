"""``python -m nodeagent.lab.demo``: see what the agents do, in less than a minute."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console

from nodeagent.errors import NodeagentError
from nodeagent.lab.demo.application import manifest
from nodeagent.lab.demo.findings import broken
from nodeagent.lab.demo.report import show, show_next
from nodeagent.lab.demo.run import run

_WIDTH = 110
"""Of lines at most, and of lines into a file or pipe."""


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return console


@click.command()
@click.option(
    "--requests", default=300, show_default=True, type=click.IntRange(20, 5000), help="How many pages to ask for."
)
@click.option(
    "--yaml",
    "only_yaml",
    is_flag=True,
    help="Print the application as YAML for `nodeagent lab up -f -`, and nothing else.",
)
def main(requests: int, only_yaml: bool) -> None:
    """Run a small application without and with agents, and show what can be seen of it. Takes root;
    leaves nothing behind.
    """
    if only_yaml:
        click.echo(manifest(), nl=False)
        return
    console = _console()
    started = time.monotonic()
    try:
        found = run(console, requests)
        show(console, found)
    except NodeagentError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if faults := broken(found):
        sys.exit("\n".join(f"error: a claim does not hold: {fault}" for fault in faults))
    show_next(console)
    console.print(
        f"\n[green]✓[/] [bold]Every claim holds[/] [dim]({time.monotonic() - started:.0f} s; nothing is left "
        "on this machine)"
    )


if __name__ == "__main__":
    main()
