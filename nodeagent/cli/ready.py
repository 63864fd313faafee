"""``nodeagent ready``: whether an agent is ready, for a kubelet's probe or a person."""

from __future__ import annotations

import click

from nodeagent.cli.admin import RunningAgent, choosing


@click.command()
@choosing
@click.option(
    "--own",
    is_flag=True,
    help="Only the daemon of this container counts: while it takes over from another one, that one answers.",
)
@click.pass_context
def ready(context: click.Context, agents: list[RunningAgent], own: bool) -> None:
    """Say whether an agent is ready, and what is missing; exit 1: it is not."""
    answers = [agent.words("/ready", own=own) for agent in agents]
    for _, text in answers:
        click.echo(text, nl=False)
    context.exit(0 if all(good for good, _ in answers) else 1)
