"""``nodeagent webhook``: the cluster's injection service."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default="/etc/nodeagent/webhook.yaml",
    show_default=True,
    help="The service's configuration.",
)
def webhook(path: Path) -> None:
    """Serve the API server's admission reviews (HTTPS) until SIGTERM: pods that ask for a sidecar
    get one.

    Which pods: labels of namespace and pod, as Istio reads them; see daemonset/webhook/. A pod that
    cannot be injected is denied, with the reason. The certificate comes from the authority's
    directory, and the caBundle of the registration is kept right.
    """
    import asyncio

    from nodeagent import log_lines
    from nodeagent.config import load_as
    from nodeagent.webhook.main import run
    from nodeagent.webhook.settings import WebhookConfig

    log_lines.to_stderr()
    asyncio.run(run(load_as(path, WebhookConfig)))
