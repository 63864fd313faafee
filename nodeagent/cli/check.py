"""``nodeagent check``: will the agent work on this machine, and what is lost where something is missing?"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from nodeagent.cli.output import Column, Output, Row, emit, output_option
from nodeagent.cli.run import AGENT_YAML
from nodeagent.errors import KernelError

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
def check(path: Path, output: Output) -> int:
    """Try each thing that the agent needs of this machine; exit 1 when one is missing."""
    if os.geteuid():
        raise KernelError(
            "checking means to load BPF programs and to make network namespaces: run it as root, which the agent "
            "needs to be as well"
        )
    from nodeagent.config import load
    from nodeagent.redirect import preflight

    redirect = load(path).redirect if path != AGENT_YAML or path.exists() else None
    setting = redirect.when_dead if redirect is not None else "policy"
    tried = preflight.run(redirect.cgroup, redirect.pin_directory) if redirect is not None else preflight.run()
    findings = [
        *tried,
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


def _state(ok: bool, needed: bool) -> str:
    if ok:
        return "ok"
    return "missing" if needed else "absent"
