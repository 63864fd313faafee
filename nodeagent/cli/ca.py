"""``nodeagent ca``: the certificate authority as a service, and the exchange of its root."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from nodeagent.cli.types import Seconds

SETTLED: float = 60.0
THEN = {
    "prepare": "the new root is trusted beside the old one; next: switch",
    "switch": "the new root signs; next, when no certificate of the old root is held any more: finish",
    "finish": "the new root alone is trusted",
}
"""What is so after each step."""


@click.group()
def ca() -> None:
    """The built-in certificate authority."""


@ca.command(short_help="Serve Istio's certificate protocol until SIGTERM.")
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default="/etc/nodeagent/ca.yaml",
    show_default=True,
    help="The service's configuration.",
)
def serve(path: Path) -> None:
    """Serve Istio's certificate protocol (gRPC over TLS) until SIGTERM."""
    from nodeagent import log_lines
    from nodeagent.ca.server import serve as run
    from nodeagent.ca.settings import CaConfig
    from nodeagent.config import load_as

    log_lines.to_stderr()
    asyncio.run(run(load_as(path, CaConfig)))


@ca.command(short_help="Make an authority in a directory.")
@click.option(
    "-d", "--directory", type=click.Path(path_type=Path), required=True, help="Where (identity.caDirectory).",
)  # fmt: skip
@click.option("--trust-domain", default="cluster.local", show_default=True, help="As identity.trustDomain.")
def init(directory: Path, trust_domain: str) -> None:
    """Make an authority in a directory, for machines that cannot share one: give each a copy of it.

    An agent makes one too, where there is none: machines that shall trust each other need the same
    before their agents start. One that is there is kept.
    """
    from nodeagent.identity import authority_directory

    if directory == Path():  # of a variable that is not set
        raise click.BadParameter("the path of a folder is expected", param_hint="--directory")
    there = (directory / authority_directory.ROOTS).exists()
    authority_directory.open_or_create(directory, trust_domain, time.time())
    click.echo(f"{directory}: the authority of {trust_domain} {'is kept' if there else 'is made'}")


@ca.command("rotate-root", short_help="Exchange the root without a refused connection.")
@click.argument("step", type=click.Choice(["prepare", "switch", "finish"]))
@click.option(
    "-d",
    "--directory",
    type=click.Path(path_type=Path),
    help="The authority's directory (identity.caDirectory).",
)
@click.option("--secret", metavar="NAMESPACE/NAME", help="The Secret that holds a cluster's authority instead.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    envvar="KUBECONFIG",
    default=lambda: Path.home() / ".kube" / "config",
    show_default="~/.kube/config",
    help="How to reach that cluster.",
)
@click.option(
    "--after", default=SETTLED, show_default=True, type=Seconds(min=0),
    help="Refuse unless the step before was taken so many seconds ago. Agents that share the directory follow "
"within seconds; those that use "
    "`nodeagent ca serve` hold certificates of the old root for up to identity.ttlSeconds: give that before `finish`.",
)  # fmt: skip
def rotate_root(step: str, directory: Path | None, secret: str | None, kubeconfig: Path, after: float) -> None:
    """Exchange the root without a refused connection, in three steps.

    \b
    prepare: make a new root and have it trusted beside the old one.
    switch: sign with the new root; agents renew all certificates.
    finish: trust the old root no more.

    Running agents take up each step by themselves; take the next when all have.
    """
    if (directory is None) == (secret is None):
        raise click.UsageError("Give exactly one of --directory and --secret.")
    if directory is not None:
        take(step, directory, after)
    else:
        asyncio.run(_take_in_cluster(step, str(secret), kubeconfig, after))
    click.echo(THEN[step])


def take(step: str, directory: Path, after: float) -> None:
    """Take *step* of the exchange in the authority's *directory*, unless the one before was taken
    less than *after* seconds ago. Raises IdentityError.
    """
    from nodeagent.errors import IdentityError
    from nodeagent.identity import authority_directory

    now = time.time()
    since = now - authority_directory.last_step(directory)
    if step != "prepare" and since < after:
        raise IdentityError(
            f"{directory}: the step before was taken {since:.0f} s ago: wait until it is in force everywhere, "
            f"{after - since:.0f} s more, or give --after"
        )
    {
        "prepare": authority_directory.prepare,
        "switch": authority_directory.switch,
        "finish": authority_directory.finish,
    }[step](directory, now)


async def _take_in_cluster(step: str, secret: str, kubeconfig: Path, after: float) -> None:
    from nodeagent.ca.secret import AuthoritySecret
    from nodeagent.kube.access import open_access
    from nodeagent.kube.client import KubeClient

    namespace, _, name = secret.partition("/")
    if not namespace or not name:
        raise click.UsageError(f"--secret {secret!r}: NAMESPACE/NAME is expected.")
    kept = AuthoritySecret(KubeClient(open_access(kubeconfig)), namespace, name)
    await kept.take(lambda folder: take(step, folder, after))
