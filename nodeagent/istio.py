"""What Istio fixes and several parts have to agree on: a sidecar's ports, user and addresses, and
the labels and annotations of pods and namespaces.

Source: Istio's documentation of ports used, and its injection template and webhook.
"""

from __future__ import annotations

from typing import Final

from nodeagent.vocabulary import Family

USER: Final = 1337
"""User and group of a sidecar, whose traffic is not captured, and of the process that reads pods' logs."""
ADMIN_PORT: Final = 15000
"""The admin API, on localhost."""
OUTBOUND_PORT: Final = 15001
"""What a pod opens is led there."""
INBOUND_PORT: Final = 15006
"""What reaches a pod is led there."""
TUNNEL_PORT: Final = 15008
"""Istio's HBONE: where an ambient mesh's proxies take connections for a pod."""
STATUS_PORT: Final = 15020
"""Metrics, and the application's probes."""
READY_PORT: Final = 15021
"""Whether the sidecar, or the agent, is ready."""
SCRAPE_PORT: Final = 15090
"""Envoy's own metrics."""
PORTS: Final = (ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, TUNNEL_PORT, STATUS_PORT, READY_PORT, SCRAPE_PORT)
UNCAPTURED_PORTS: Final = (TUNNEL_PORT, SCRAPE_PORT, READY_PORT, STATUS_PORT)
"""Ports of a pod at which its sidecar answers itself, whoever asks: its rules capture nothing there."""
OWN_SOURCE: Final[dict[Family, str]] = {4: "127.0.0.6", 6: "::6"}
"""Whence a sidecar connects to its own application: the rules let through what comes from there, or
it would be captured again.
"""

ROOT_NAMESPACE: Final = "istio-system"
"""The namespace whose policies are for the whole mesh, unless configured otherwise."""
SYSTEM_NAMESPACES: Final = ("kube-system", "kube-public", "kube-node-lease", "local-path-storage")
"""Namespaces whose pods never get a sidecar."""
INJECTION_LABEL: Final = "istio-injection"
"""A namespace's label; ``enabled``: its pods get a sidecar, unless they opt out."""
REVISION_LABEL: Final = "istio.io/rev"
"""A namespace's or pod's label: which injector's sidecar is asked for, by that injector's revision."""
INJECT: Final = "sidecar.istio.io/inject"
"""A pod's own label, or annotation: ``true`` asks for a sidecar, ``false`` opts out."""
AMBIENT_MODE: Final = "istio.io/dataplane-mode"
"""A namespace's or pod's label; ``ambient``: its pods are in the mesh without a sidecar, ``none``: they are not."""
AMBIENT_REDIRECTION: Final = "ambient.istio.io/redirection"
"""The annotation ``enabled`` of a pod whose traffic Istio's ztunnel takes."""
TUNNEL: Final = "networking.istio.io/tunnel"
"""The label of a pod that takes HBONE: ``http`` among what it takes."""
STATUS: Final = "sidecar.istio.io/status"
"""The annotation of an injected pod: what was added and what was there before, as JSON."""


def outbound_name(host: str, port: int) -> str:
    """Return the server name of mTLS to *port* of the Service *host*, as sidecars send it (no subset)."""
    return f"outbound_.{port}_._.{host}"
