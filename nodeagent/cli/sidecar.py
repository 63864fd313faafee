"""``nodeagent sidecar``: the proxy as a classic sidecar, one process in a pod."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nodeagent.cli.types import Seconds


@click.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    required=True,
    help="The cluster's state, as agent.yaml's source: a folder, watched.",
)
@click.option("--trust-domain", default="cluster.local", show_default=True, help="The SPIFFE trust domain.")
@click.option(
    "--sds-socket",
    type=click.Path(path_type=Path),
    default="/var/run/secrets/workload-spiffe-uds/socket",
    show_default=True,
    help="A unix socket with Envoy's secret discovery service: the node agent's.",
)
@click.option(
    "--access-log", default="-", show_default=True, help="A file to append to, - for standard output, '' for none."
)
@click.option(
    "--drain-seconds",
    default=5.0,
    show_default=True,
    type=Seconds(0, 3600),
    help="How long it serves on after SIGTERM.",
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="YAML with cluster, resources, proxy, mtls, accessLogFormat, extensionProviders, pathNormalization, "
    "trustDomainAliases.",
)
@click.pass_context
def sidecar(
    context: click.Context,
    *,
    source: Path,
    trust_domain: str,
    sds_socket: Path,
    access_log: str,
    drain_seconds: float,
    config: Path | None,
) -> None:
    """Carry a pod's traffic, which `nodeagent sidecar-init` leads here, until SIGTERM.

    Runs in the pod's network namespace as the sidecar's user (1337), without a privilege. The
    environment says which pod it is, by the downward API: POD_NAME, POD_NAMESPACE, POD_UID,
    POD_IPS, NODE_NAME; NODEAGENT_APP_PROBES holds the probes to answer at port 15020, /app-health/.
    """
    from nodeagent.config import load_as
    from nodeagent.identity.spiffe import check_trust_domain
    from nodeagent.sidecar.config import SidecarConfig
    from nodeagent.sidecar.main import Settings, main
    from nodeagent.sidecar.pod import Pod
    from nodeagent.sidecar.probes import from_environment

    check_trust_domain(trust_domain)
    loaded = load_as(config, SidecarConfig) if config is not None else SidecarConfig()  # type: ignore[call-arg]
    settings = Settings(source, trust_domain, sds_socket, access_log, drain_seconds, loaded)
    context.exit(main(settings, Pod.of(os.environ), from_environment(os.environ)))
