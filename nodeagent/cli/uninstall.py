"""``nodeagent uninstall``: what a daemon leaves for its successor is taken away."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from nodeagent.cli.cluster import (
    file_option,
    kubeconfig_option,
    manifests,
    overlay_option,
    reached,
    refuse_without_cluster,
    say,
)
from nodeagent.cli.output import Column, Output, emit, output_option
from nodeagent.cli.run import AGENT_YAML
from nodeagent.cli.types import Seconds
from nodeagent.errors import KernelError

COLUMNS: Final = (Column("REMOVED", "kind"), Column("WHERE IT WAS", "path"))


@click.command(short_help="What agents left is removed: from this node, or from a cluster.")
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
@click.option("--cluster", is_flag=True, help="Take the agent off a whole cluster instead; these options are for that:")
@kubeconfig_option
@overlay_option
@file_option
@click.option("--skip-nodes", is_flag=True, help="Do not clean the nodes: what is pinned there stays in force.")
@click.option("--with-policies", is_flag=True, help="Remove the kinds of nodeagent.io with all objects of them.")
@click.option(
    "--with-volumes", is_flag=True, help="Go on though pods have volumes of csi.nodeagent.io: they hang then."
)
@click.option(
    "--timeout", default=300.0, show_default=True, type=Seconds(min=1), help="Seconds to wait for all nodes.",
)  # fmt: skip
def uninstall(
    path: Path,
    output: Output,
    cluster: bool,
    kubeconfig: Path | None,
    overlay: str | None,
    file: Path | None,
    skip_nodes: bool,
    with_policies: bool,
    with_volumes: bool,
    timeout: float,
) -> None:
    """Detach every program and remove every pin, socket and mark of a daemon that does not run any more.

    With --cluster: end the agents, have each node cleaned like that by a pod, then remove all that was
    installed: objects, kinds, marks on nodes. It may be broken off and run again. Where the DaemonSet
    is gone already (kubectl delete), --overlay or --file says what had been installed.
    """
    if cluster:
        from nodeagent.rollout.remove import Removal

        removal = Removal(reached(kubeconfig), say, seconds=timeout)
        documents = manifests(overlay, file)
        asyncio.run(removal.run(documents, nodes=not skip_nodes, policies=with_policies, volumes=with_volumes))
        say("nothing of the agent is left in the cluster")
        return
    of_cluster = ("kubeconfig", "overlay", "file", "skip_nodes", "with_policies", "with_volumes", "timeout")
    refuse_without_cluster(*of_cluster)
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
