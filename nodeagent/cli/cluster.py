"""What commands for a whole cluster have in common: how to reach it, and which manifests are meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from nodeagent.errors import ConfigError

if TYPE_CHECKING:
    from nodeagent.kube.access import KubeObject
    from nodeagent.rollout.resources import ClusterObjects

kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="How to reach the cluster.  [default: $KUBECONFIG, else ~/.kube/config]",
)
overlay_option = click.option("--overlay", help="A folder below daemonset/overlays, or the path of a kustomization.")
file_option = click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path, allow_dash=True), help="Manifests, rendered; -: from stdin."
)


def refuse_without_cluster(*names: str) -> None:
    """Raise UsageError where one of the options *names* is given to a command that is not for a cluster: what
    it says would not be done, and something else would.
    """
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[-1]} goes with --cluster", context)


def say(line: str) -> None:
    """Tell a person what goes on, beside what the command prints."""
    click.echo(line, err=True)


def reached(kubeconfig: Path | None) -> ClusterObjects:
    """Return the cluster of *kubeconfig*, of the environment's, or of the user's own. Raises ConfigError."""
    from nodeagent.kube.access import open_access
    from nodeagent.kube.client import KubeClient
    from nodeagent.rollout.resources import ClusterObjects

    given = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = kubeconfig or Path(given or Path.home() / ".kube" / "config")
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: no such kubeconfig ({why}): give --kubeconfig, or set KUBECONFIG") from None
    return ClusterObjects(KubeClient(open_access(path)))


def manifests(overlay: str | None, file: Path | None, *, default: str | None = None) -> list[KubeObject]:
    """Return the objects that --overlay or --file names; *default*: the overlay where neither is
    given; None: none. Raises ConfigError.
    """
    from nodeagent.rollout.manifests import load
    from nodeagent.rollout.manifests import overlay as folder

    if overlay is not None and file is not None:
        raise click.UsageError("Give one of --overlay and --file.")
    if file is not None:
        return load(file)
    name = overlay or default
    return load(folder(name)) if name is not None else []
