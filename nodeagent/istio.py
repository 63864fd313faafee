"""What Istio fixes and several parts have to agree on: a sidecar's ports, user and addresses, and
the marks of pods and namespaces.
"""

from __future__ import annotations

from typing import Final

from nodeagent.vocabulary import Family

USER: Final = 1337
"""User and group of a sidecar, whose traffic is not captured, and of a node's workers."""
ADMIN_PORT: Final = 15000
OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
TUNNEL_PORT: Final = 15008
STATUS_PORT: Final = 15020
"""Metrics, and the application's probes."""
READY_PORT: Final = 15021
SCRAPE_PORT: Final = 15090
PORTS: Final = (ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, TUNNEL_PORT, STATUS_PORT, READY_PORT, SCRAPE_PORT)
UNCAPTURED_PORTS: Final = (TUNNEL_PORT, SCRAPE_PORT, READY_PORT, STATUS_PORT)
"""A sidecar answers there itself, whoever asks."""
OWN_SOURCE: Final[dict[Family, str]] = {4: "127.0.0.6", 6: "::6"}
"""Whence a sidecar connects to its own application: the rules let through what comes from there, or
it would be captured again.
"""

ROOT_NAMESPACE: Final = "istio-system"
"""Whose policies are for the whole mesh, unless configured otherwise."""
SYSTEM_NAMESPACES: Final = ("kube-system", "kube-public", "kube-node-lease", "local-path-storage")
"""Whose pods are never injected."""
INJECTION_LABEL: Final = "istio-injection"
"""Of a namespace; ``enabled``: its pods are injected."""
REVISION_LABEL: Final = "istio.io/rev"
"""Of a namespace or a pod: which injector is asked for."""
INJECT: Final = "sidecar.istio.io/inject"
"""A pod's own label, or annotation."""
STATUS: Final = "sidecar.istio.io/status"
"""The annotation of an injected pod: what was added and what was there before, as JSON."""
