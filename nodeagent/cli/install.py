"""``nodeagent install``: the agent, its authority and what they need, put into a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeagent.cli.cluster import file_option, kubeconfig_option, manifests, overlay_option, reached, say
from nodeagent.cli.types import Seconds
from nodeagent.errors import NodeagentError

if TYPE_CHECKING:
    from nodeagent.kube.access import KubeObject
    from nodeagent.rollout.resources import ClusterObjects

DEFAULT = "minimal"


@click.command(short_help="The agent on every node of a cluster.")
@kubeconfig_option
@overlay_option
@file_option
@click.option("--dry-run", is_flag=True, help="Print what would be applied, as YAML; no cluster is asked.")
@click.option("--force-conflicts", is_flag=True, help="Take over fields that somebody else has set.")
@click.option(
    "--timeout", default=300.0, show_default=True, type=Seconds(min=0),
    help="Seconds to wait for each rollout; 0: not at all.",
)  # fmt: skip
def install(
    kubeconfig: Path | None,
    overlay: str | None,
    file: Path | None,
    dry_run: bool,
    force_conflicts: bool,
    timeout: float,
) -> None:
    """Put the agent into a cluster and wait until every node has it: an overlay of daemonset/, by
    default `minimal`.

    The same as `kubectl apply --server-side -k daemonset/overlays/minimal`, but that rights and kinds
    are looked at before anything is changed, and that it waits. It may be run again, for another
    version too.
    """
    import yaml

    documents = manifests(overlay, file, default=DEFAULT)
    if dry_run:
        click.echo(yaml.safe_dump_all(documents, sort_keys=False), nl=False)
        return
    asyncio.run(_installed(reached(kubeconfig), documents, force=force_conflicts, seconds=timeout))
    say("the agent is on every node; next: label a namespace nodeagent.io/dataplane=enabled")


async def _installed(objects: ClusterObjects, documents: list[KubeObject], *, force: bool, seconds: float) -> None:
    """Install, and tell what of Istio's a namespace that moves loses. Raises ConfigError, ApiError, ControlError."""
    from nodeagent.rollout.install import install as run
    from nodeagent.rollout.not_taken import losses

    await run(objects, documents, say, force=force, seconds=seconds)
    try:
        for each in await losses(objects):
            say(f"warning: {each.subject}: not carried out by agents: {each.words}")
    except NodeagentError as error:
        say(f"warning: what of Istio's is not carried out is not known: {error}")
