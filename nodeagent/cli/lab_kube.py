"""``nodeagent lab kube``: a real Kubernetes on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final, get_args

import click
from rich.console import Console

from nodeagent.cli.output import Column, Output, emit_parts, listed, output_option
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.cluster import KubeShape
from nodeagent.lab.kube.config import Cni
from nodeagent.lab.kube.layout import MAX_NODES, STATE_ROOT

POLL_SECONDS: Final = 0.1
_NAME = click.option(
    "--name", default="kube", show_default=True, metavar="NAME", help="Which cluster: several can stand side by side."
)
_AS_IS: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


STATUS: Final = {
    "nodes": (Column("NAME", "name"), Column("READY", "ready", _yes), Column("ADDRESSES", "addresses", listed)),
    "components": (Column("PLACE", "place"), Column("COMPONENT", "component"), Column("STATE", "state")),
    "pods": (
        *(Column("NAMESPACE", "namespace"), Column("NAME", "name"), Column("NODE", "node")),
        *(Column("PHASE", "phase"), Column("READY", "ready", _yes)),
        Column("ADDRESSES", "addresses", listed, wrap=True),
    ),
}
"""The tables of ``lab kube status``."""


@click.group()
def kube() -> None:
    """A real Kubernetes on this machine: kubelet and containerd on every node, one API server.
    Takes root.

    `make kube` builds it, once; nodes have namespaces of their own, and nothing of a cluster is seen
    outside of it. Its images are made of this machine's packages: docker.io/library/apps:lab has
    Python, nginx, curl, wrk, iperf3 and tcpdump.
    """


@kube.command()
@_NAME
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1, MAX_NODES), help="How many nodes.")
@click.option(
    "--cni",
    default="ptp",
    show_default=True,
    type=click.Choice(get_args(Cni)),
    help="How pods hang on their node: a routed link each, or one bridge.",
)
@click.option("--dns/--no-dns", default=True, show_default=True, help="CoreDNS in the cluster.")
@click.option("--max-pods", default=250, show_default=True, type=click.IntRange(1, 250), help="Of a node.")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An archive of images (tar) that every node has; may be given several times.",
)
@click.option(
    "--binary",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `make kube` built; the newest in the cache if not given.",
)
def up(
    name: str, nodes: int, cni: Cni, dns: bool, max_pods: int, images: tuple[Path, ...], binary: Path | None
) -> None:
    """Make a cluster; ready when its nodes are."""
    shape = KubeShape(nodes, cni, dns, max_pods)
    begun = time.monotonic()
    with Console(stderr=True).status(f"cluster {name}") as status:
        made = Kube.up(
            name=name,
            shape=shape,
            archives=images,
            binary=binary,
            say=lambda text: status.update(f"cluster {name}: {text}"),
        )
    click.echo(
        f"cluster {name} is up after {time.monotonic() - begun:.1f} s: {nodes} nodes Ready; kubeconfig "
        f"{made.layout.admin}, for: nodeagent lab kube kubectl"
    )


@kube.command()
@_NAME
def down(name: str) -> None:
    """Remove a cluster with everything in it, also after a crash."""
    click.echo(f"cluster {name} is removed" if Kube.remove(name) else f"there was no cluster {name}")


@kube.command("list")
def show_all() -> None:
    """Show the names of the clusters that are up."""
    for path in sorted(STATE_ROOT.glob("*.json")):
        click.echo(path.stem)


@kube.command()
@_NAME
@output_option
def status(name: str, output: Output) -> None:
    """Show nodes, components and pods."""
    emit_parts(Kube.open(name).status(), STATUS, output)


@kube.command(context_settings=_AS_IS | {"help_option_names": []})
@_NAME
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kubectl(name: str, arguments: tuple[str, ...]) -> None:
    """Run kubectl as the cluster's administrator; exits as it does. --name comes first."""
    sys.exit(subprocess.run(Kube.open(name).kubectl_command(arguments), check=False).returncode)


@kube.command("exec", short_help="Run a command on a node.", context_settings=_AS_IS)
@_NAME
@click.argument("place", metavar="NODE|control")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, place: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on a node (node-a, …) with the node's files, network, cgroups and processes, or in
    the network namespace of the control plane; exits as it does.
    """
    words = command[1:] if command[0] == "--" else command
    sys.exit(subprocess.run(Kube.open(name).command(place, words), check=False).returncode)


@kube.command()
@_NAME
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until Ctrl-C or the cluster is gone.")
@click.argument("target", metavar="PLACE/COMPONENT")
def logs(name: str, follow: bool, target: str) -> None:
    """Print what a component has written: control/apiserver, node-a/kubelet, …"""
    path = Kube.open(name).log_file(target)
    with path.open("rb") as log:
        while True:
            while piece := log.read(1 << 16):
                click.echo(piece, nl=False)
            if not follow or not path.exists():
                return
            time.sleep(POLL_SECONDS)


@kube.command("load-image")
@_NAME
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def load_image(name: str, archive: Path) -> None:
    """Give every node the images of ARCHIVE, a tar file as buildah, podman or docker save it."""
    with Console(stderr=True).status(f"cluster {name}: {archive}"):
        Kube.open(name).load(archive)
    click.echo(f"the nodes of {name} have the images of {archive}")
