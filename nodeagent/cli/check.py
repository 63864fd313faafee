"""``nodeagent check``: will the agent work on this machine, and what is lost where something is missing?"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from nodeagent.cli.cluster import (
    file_option,
    kubeconfig_option,
    manifests,
    overlay_option,
    reached,
    refuse_without_cluster,
    say,
)
from nodeagent.cli.output import Column, Output, Row, emit, output_option
from nodeagent.cli.run import AGENT_YAML
from nodeagent.cli.types import Seconds
from nodeagent.errors import KernelError, NodeagentError

if TYPE_CHECKING:
    from nodeagent.config import AgentConfig
    from nodeagent.kube.access import KubeObject
    from nodeagent.redirect.preflight import Finding
    from nodeagent.rollout.check import ClusterFinding
    from nodeagent.rollout.resources import ClusterObjects

CLUSTER_COLUMNS: Final = (
    Column("WHERE", "where"),
    Column("FEATURE", "feature"),
    Column("", "state"),
    Column("DETAIL", "detail", wrap=True),
    Column("LOST WITHOUT IT", "lost", wrap=True, extra=True),
)
COLUMNS: Final = (
    Column("FEATURE", "feature"),
    Column("", "state"),
    Column("DETAIL", "detail", wrap=True),
    Column("LOST WITHOUT IT", "lost", wrap=True),
)


WITHOUT_DAEMON: Final = {
    "policy": (
        "pods that a policy protects are refused, but for declared probes; others pass; the kernel path goes "
        "on for redirect.kernelPathTimeoutSeconds"
    ),
    "pass": "all pods pass, whatever protects them",
    "refuse": "all pods are refused; the kernel path goes on for redirect.kernelPathTimeoutSeconds",
}
"""By ``redirect.whenDead``."""


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
@output_option
@click.option("--cluster", is_flag=True, help="Look at a whole cluster instead; these options are for that:")
@kubeconfig_option
@overlay_option
@file_option
@click.option("--connectivity", is_flag=True, help="Make pods, have them try every path between them, remove them.")
@click.option(
    "--timeout", default=120.0, show_default=True, type=Seconds(min=1), help="Seconds for a node's answer.",
)  # fmt: skip
def check(
    path: Path,
    output: Output,
    cluster: bool,
    kubeconfig: Path | None,
    overlay: str | None,
    file: Path | None,
    connectivity: bool,
    timeout: float,
) -> int:
    """Try each thing that the agent needs of this machine, and each path that agent.yaml names; exit 1 when one is
    missing.

    With --cluster: what the API server says of rights, kinds, rollouts and the authority, and this
    check on every node, in a pod like the agent's; before an installation, with --overlay or --file.
    """
    if cluster:
        documents = manifests(overlay, file)
        return show(asyncio.run(_found(reached(kubeconfig), documents, connectivity, timeout)), output)
    refuse_without_cluster("kubeconfig", "overlay", "file", "connectivity", "timeout")
    if os.geteuid():
        raise KernelError(
            "checking means to load BPF programs and to make network namespaces: run it as root, which the agent "
            "needs to be as well"
        )
    from nodeagent.config import load
    from nodeagent.redirect import preflight

    given = click.get_current_context().get_parameter_source("path") is not ParameterSource.DEFAULT
    config = load(path) if given or path.exists() else None
    redirect = config.redirect if config is not None else None
    setting = redirect.when_dead if redirect is not None else "policy"
    tried = preflight.run(redirect.cgroup, redirect.pin_directory) if redirect is not None else preflight.run()
    findings = [
        *tried,
        *_paths(config),
        *_runtime(config),
        *_nri(config),
        preflight.Finding(
            "while no daemon lives", True, True, f"{WITHOUT_DAEMON[setting]} (redirect.whenDead: {setting})", ""
        ),
    ]
    rows: list[Row] = [{**asdict(finding), "state": _state(finding.ok, finding.needed)} for finding in findings]
    emit(rows, COLUMNS, output)
    missing = [row["feature"] for row in rows if row["state"] == "missing"]
    if output == "table":
        kernel = f"Linux {platform.release()} on {platform.machine()}"
        click.echo(
            f"\n{kernel}: the agent cannot work here without {', '.join(missing)}."
            if missing
            else f"\n{kernel}: the agent can work here."
        )
    return 1 if missing else 0


async def _found(
    objects: ClusterObjects, documents: Sequence[KubeObject], connectivity: bool, seconds: float
) -> list[ClusterFinding]:
    from nodeagent.rollout.check import ClusterCheck
    from nodeagent.rollout.connectivity import Connectivity

    found = await ClusterCheck(objects, documents, seconds=seconds).run()
    return found + (await Connectivity(objects, say).run() if connectivity else [])


def show(found: Sequence[ClusterFinding], output: Output) -> int:
    """Print *found*; return the exit status."""
    rows: list[Row] = [asdict(finding) for finding in found]
    emit(rows, CLUSTER_COLUMNS, output)
    missing = [f"{finding.feature} ({finding.where})" for finding in found if finding.state == "missing"]
    if output == "table":
        click.echo(f"\nthe agent does not work here as it should: {', '.join(missing)}" if missing else "\nall is well")
    return 1 if missing else 0


def _paths(config: AgentConfig | None) -> Iterator[Finding]:
    """Try every path that *config* names; yield those that cannot be used, or that all can."""
    if config is None:
        return
    from nodeagent.config_paths import named_paths, wrong_paths
    from nodeagent.redirect.preflight import Finding

    wrong = list(wrong_paths(config))
    for each in wrong:
        yield Finding(each.named.key, False, each.needed, each.words, each.named.use.lost)
    if not wrong:
        yield Finding("paths in agent.yaml", True, True, f"all {len(list(named_paths(config)))} can be used", "")


def _runtime(config: AgentConfig | None) -> Iterator[Finding]:
    """Try the container runtime, where *config* says that there is a cluster."""
    if config is None or config.kubernetes is None:
        return
    from nodeagent.places.preflight import try_runtime
    from nodeagent.redirect.preflight import Finding

    try:
        said = try_runtime(config.kubernetes.runtime, config.redirect.cgroup)
        yield Finding("container runtime", True, True, said, "")
    except NodeagentError as error:
        yield Finding("container runtime", False, True, str(error), "no pod's place is known: none is captured")


def _nri(config: AgentConfig | None) -> Iterator[Finding]:
    """Try NRI, likewise."""
    if config is None or config.kubernetes is None:
        return
    from nodeagent.places.preflight import runtime_version, try_nri
    from nodeagent.redirect.preflight import Finding

    feature = "runtime waits (NRI)"
    try:
        said = try_nri(config.kubernetes.nri, runtime_version(config.kubernetes.runtime))
        yield Finding(feature, True, False, said, "")
    except NodeagentError as error:
        lost = "containers do not wait until their pods are captured: first packets may go by"
        yield Finding(feature, False, False, str(error), lost)


def _state(ok: bool, needed: bool) -> str:
    if ok:
        return "ok"
    return "missing" if needed else "absent"
