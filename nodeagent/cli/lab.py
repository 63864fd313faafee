"""``nodeagent lab``: a cluster on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import yaml
from rich.console import Console
from rich.table import Table

from nodeagent.cli.output import Output, output_option
from nodeagent.errors import NodeagentError, ResourceError
from nodeagent.lab import Lab
from nodeagent.lab.cluster import Mode
from nodeagent.lab.injection import TEMPLATES
from nodeagent.resources import yaml_text

_NAME = click.option("--name", default="lab", show_default=True, metavar="NAME", help="Which lab: several can stand side by side.")
_FILES = click.option("-f", "--file", "files", multiple=True, metavar="FILE|DIR|-", help="Kubernetes YAML to apply; may be given several times.")
_WAIT = click.option("--wait", default=30.0, show_default=True, metavar="SECONDS", help="How long pods may take to be ready; 0 does not wait.")


@click.group()
def lab() -> None:
    """A cluster on this machine: nodes and pods from namespaces and cgroups, no Kubernetes needed. Takes root."""


@lab.command()
@_NAME
@_FILES
@_WAIT
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1, 200), help="How many nodes.")
@click.option(
    "--mode", default="direct", show_default=True, type=click.Choice(get_args(Mode)), help="No mesh, an agent a node, or a sidecar (ours, Envoy) a pod."
)
@click.option("--native", is_flag=True, help="With sidecars: as init containers that go on running (native sidecars).")
@click.option("--hold", is_flag=True, help="With sidecars: applications start after their proxy is ready.")
@click.option("--agent-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Part of an agent.yaml, merged into every node's.")
def up(name: str, files: tuple[str, ...], wait: float, nodes: int, mode: Mode, native: bool, hold: bool, agent_config: Path | None) -> None:
    """Make a lab and apply resources to it. Twice is the same as once."""
    if mode not in TEMPLATES and (native or hold):
        raise click.UsageError(f"--native and --hold are for the modes {' and '.join(TEMPLATES)}")
    overlay = _overlay(agent_config)
    injection = {key: True for key, given in (("native", native), ("hold", hold)) if given}
    with Console(stderr=True).status(f"lab {name}: {nodes} nodes, {mode}"):
        made = Lab.up(files, name=name, nodes=nodes, mode=mode, agent=overlay, injection=injection, wait_seconds=wait)
    click.echo(f"lab {name} is up: {nodes} nodes, {len(made.pods)} pods, mode {mode}; state in {made.state}")


def _overlay(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = yaml_text.one(path.read_text())
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
def apply(name: str, files: tuple[str, ...], wait: float) -> None:
    """Add or change resources; on an error nothing changes."""
    if not files:
        raise click.UsageError("-f says what to apply")
    Lab.open(name).apply(files, wait_seconds=wait)
    click.echo(f"applied to lab {name}")


@lab.command()
@_NAME
@output_option
def status(name: str, output: Output) -> None:
    """Show nodes, pods and Services."""
    value = Lab.open(name).status()
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        console = Console()
        for title, columns in (
            ("nodes", ("name", "addresses", "netns", "kubelet", "agent")),
            ("pods", ("namespace", "name", "node", "ready", "phase", "restarts", "addresses")),
            ("services", ("namespace", "name", "clusterIPs", "ports")),
        ):
            console.print(_table(title, columns, value[title]))


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(*(column.upper() for column in columns), title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


@lab.command("exec", short_help="Run a command in a pod or on a node.", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_NAME
@click.option("-n", "--namespace", default="default", show_default=True, help="Of a pod that does not say its own.")
@click.option("-c", "--container", help="Which container; the first if not given.")
@click.argument("target", metavar="POD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, namespace: str, container: str | None, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a pod (POD, NAMESPACE/POD, deploy/NAME), on a node (node1, …) or in the underlay; exits as it does."""
    words = command[1:] if command[0] == "--" else command
    argv = Lab.open(name).command(target, words, namespace, container)
    sys.exit(subprocess.run(argv, check=False).returncode)
