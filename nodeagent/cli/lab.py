"""``nodeagent lab``: a cluster on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, get_args

import click
from rich.console import Console

from nodeagent.cli.lab_kube import kube
from nodeagent.cli.output import Column, Output, Row, emit, emit_parts, listed, output_option
from nodeagent.cli.types import Seconds
from nodeagent.errors import NodeagentError, PodError, ResourceError, unread
from nodeagent.lab import Lab, cri_log
from nodeagent.lab.cluster import Mode
from nodeagent.lab.injection import TEMPLATES
from nodeagent.lab.view import is_ready
from nodeagent.resources import yaml_text
from nodeagent.resources.load import load_documents
from nodeagent.resources.model import KINDS
from nodeagent.vocabulary import ObjectKey

POLL_SECONDS: Final = 0.1
_NAME = click.option(
    "--name", default="lab", show_default=True, metavar="NAME", help="Which lab: several can stand side by side."
)
_FILES = click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE|DIR|-", help="Kubernetes YAML; may be given several times."
)
_WAIT = click.option(
    "--wait",
    default=90.0,
    show_default=True,
    type=Seconds(min=0),
    metavar="SECONDS",
    help="How long pods may take to be ready; 0 does not wait.",
)
_KEEP = click.option(
    "--keep", is_flag=True, help="Where a pod does not become ready, leave everything as it is, to look at it."
)
_NAMESPACE = click.option(
    "-n", "--namespace", default="default", show_default=True, help="Of what does not say its own."
)
_CONTAINER = click.option("-c", "--container", help="Which container; the first if not given.")
_SHORT: Final = {"Pod": "po", "Deployment": "deploy", "Service": "svc", "ConfigMap": "cm", "ServiceAccount": "sa"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


LIST: Final = (
    *(
        Column("NAME", "name"),
        Column("MODE", "mode"),
        Column("NODES", "nodes", right=True),
        Column("PODS", "pods", right=True),
    ),
    *(Column("READY", "ready", right=True), Column("STATE", "state")),
)
STATUS: Final = {
    "nodes": (
        *(
            Column("NAME", "name"),
            Column("KUBELET", "kubelet", _yes),
            Column("AGENT", "agent"),
            Column("ADDRESSES", "addresses", listed),
        ),
        Column("NETNS", "netns", extra=True),
    ),
    "pods": (
        *(
            Column("NAMESPACE", "namespace"),
            Column("NAME", "name"),
            Column("NODE", "node"),
            Column("READY", "ready", _yes),
            Column("PHASE", "phase"),
        ),
        *(
            Column("RESTARTS", "restarts", right=True, extra=True),
            Column("ADDRESSES", "addresses", listed, wrap=True),
            Column("WHY", "why", wrap=True),
        ),
    ),
    "services": (
        *(Column("NAMESPACE", "namespace"), Column("NAME", "name"), Column("CLUSTER IPS", "clusterIPs", listed)),
        Column("PORTS", "ports", listed, wrap=True),
    ),
}
"""The tables of ``lab status``."""


@click.group()
def lab() -> None:
    """A cluster on this machine: nodes and pods from namespaces and cgroups, no Kubernetes needed.
    Takes root.

    Pods see this machine's files and programs, and an empty /run; what they write anywhere but in a
    volume is theirs alone and goes with them.
    """


lab.add_command(kube)


EMPTY: Final = (
    "-f names files with pods and Services, and --mode nodeagent has an agent on each node: "
    "nodeagent lab up --name {name} -f app.yaml --mode nodeagent"
)
"""What to do with a lab without a pod."""


@lab.command()
@_NAME
@_FILES
@_WAIT
@_KEEP
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1, 200), help="How many nodes.")
@click.option(
    "--mode",
    default="direct",
    show_default=True,
    type=click.Choice(get_args(Mode)),
    help="No mesh, an agent a node, or a sidecar (ours, Envoy) a pod.",
)
@click.option("--native", is_flag=True, help="With sidecars: as init containers that go on running (native sidecars).")
@click.option("--hold", is_flag=True, help="With sidecars: applications start after their proxy is ready.")
@click.option(
    "--agent-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Part of an agent.yaml, merged into every node's.",
)
def up(
    name: str,
    files: tuple[str, ...],
    wait: float,
    keep: bool,
    nodes: int,
    mode: Mode,
    native: bool,
    hold: bool,
    agent_config: Path | None,
) -> None:
    """Make a lab and apply resources to it. Twice is the same as once.

    A new lab is taken away again where a pod does not become ready, or ends at once: see --keep.
    """
    if mode not in TEMPLATES and (native or hold):
        raise click.UsageError(f"--native and --hold are for the modes {' and '.join(TEMPLATES)}")
    overlay = _overlay(agent_config)
    injection = {key: True for key, given in (("native", native), ("hold", hold)) if given}
    with Console(stderr=True).status(f"lab {name}: {nodes} nodes, {mode}"), _looking_at(name, keep):
        made = Lab.up(
            files, name=name, nodes=nodes, mode=mode, agent=overlay, injection=injection, wait_seconds=wait, keep=keep
        )
    waited = "" if wait else " (not waited for)"
    click.echo(f"lab {name} is up: {nodes} nodes, {len(made.pods)} pods{waited}, mode {mode}; state in {made.state}")
    if not made.pods:
        click.echo(f"it is empty: {EMPTY.format(name=name)}", err=True)


@contextmanager
def _looking_at(name: str, keep: bool) -> Iterator[None]:
    """Say what can be done about a pod that did not become ready."""
    try:
        yield
    except PodError as error:
        kept = f"it is kept as it is: see nodeagent lab status --name {name}, nodeagent lab logs --name {name} POD"
        raise PodError(f"{error}\n({kept if keep else '--keep leaves everything there, to look at it'})") from None


def _overlay(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    try:
        value = yaml_text.one(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise NodeagentError(unread(path, error)) from None
    except ResourceError as error:
        raise NodeagentError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise NodeagentError(f"{path}: allowed: a mapping of agent.yaml's fields")
    return value


@lab.command()
@_NAME
def down(name: str) -> None:
    """Remove a lab with everything in it, also after a crash."""
    click.echo(f"lab {name} is removed" if Lab.remove(name) else f"there was no lab {name}")


@lab.command()
@_NAME
@_FILES
@_WAIT
@_KEEP
def apply(name: str, files: tuple[str, ...], wait: float, keep: bool) -> None:
    """Add or change resources; on an error nothing changes."""
    if not files:
        raise click.UsageError("-f says what to apply")
    with _looking_at(name, keep):
        Lab.open(name).apply(files, wait_seconds=wait, keep=keep)
    click.echo(f"applied to lab {name}")


@lab.command()
@_NAME
@_NAMESPACE
@_FILES
@click.argument("what", metavar="[KIND/NAME]...", nargs=-1)
def delete(name: str, namespace: str, files: tuple[str, ...], what: tuple[str, ...]) -> None:
    """Remove objects: those named (pod/web, deploy/web, service/web), and those in files. If one is
    not there, nothing changes.
    """
    keys = [document.key for document in load_documents(files)] + [_key(each, namespace) for each in what]
    keys = [key for key in keys if key[0] != "Namespace"]  # others may be in it
    if not keys:
        raise click.UsageError("KIND/NAME or -f says what to delete")
    Lab.open(name).delete(*keys)
    for kind, place, each in keys:
        click.echo(f"{kind} {place}/{each} is deleted")


def _key(text: str, namespace: str) -> ObjectKey:
    kind, slash, name = text.partition("/")
    kinds: dict[str, str] = {}
    for found in KINDS:
        if found != "Namespace":
            kinds |= dict.fromkeys((found.lower(), f"{found}s".lower(), _SHORT.get(found, found).lower()), found)
    if not slash or kind.lower() not in kinds:
        raise click.BadParameter(
            f"{text!r}: KIND/NAME is expected, with KIND one of {', '.join(sorted(set(kinds.values())))}",
            param_hint="KIND/NAME",
        )
    return kinds[kind.lower()], namespace, name


@lab.command("list")
@output_option
def show_all(output: Output) -> None:
    """Show the labs that are up."""
    emit([_summary(one) for one in Lab.all()], LIST, output)


def _summary(one: Lab) -> Row:
    pods = one.pods.values()
    ready = sum(is_ready(pod) for pod in pods)
    return {
        "name": one.name,
        "mode": one.mode,
        "nodes": len(one.nodes),
        "pods": len(pods),
        "ready": ready,
        "state": str(one.state),
    }


@lab.command()
@_NAME
@output_option
def status(name: str, output: Output) -> None:
    """Show nodes, pods and Services."""
    emit_parts(Lab.open(name).status(), STATUS, output)


@lab.command()
@_NAME
@_NAMESPACE
@_CONTAINER
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until Ctrl-C or the lab is gone.")
@click.argument("target", metavar="POD")
def logs(name: str, namespace: str, container: str | None, follow: bool, target: str) -> None:
    """Print what a container of POD (POD, NAMESPACE/POD, deploy/NAME) has written."""
    lab = Lab.open(name)
    folder = lab.log_folder(target, namespace, container)
    metadata = lab.pod(target, namespace)["metadata"]
    there = lab.layout.object_file("Pod", metadata["namespace"], metadata["name"])
    with closing(cri_log.LogReader(folder)) as log:
        while True:
            gone = not there.exists()
            for piece in log.read():
                click.echo(cri_log.decode(piece), nl=False)
            if not follow or gone:
                return
            time.sleep(POLL_SECONDS)


@lab.command(
    "exec",
    short_help="Run a command in a pod or on a node.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@_NAME
@_NAMESPACE
@_CONTAINER
@click.argument("target", metavar="POD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, namespace: str, container: str | None, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a pod (POD, NAMESPACE/POD, deploy/NAME), on a node (node1, …) or in the
    underlay; exits as it does.
    """
    words = command[1:] if command[0] == "--" else command
    argv = Lab.open(name).command(target, words, namespace, container)
    sys.exit(subprocess.run(argv, check=False).returncode)
