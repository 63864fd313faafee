"""Istio's ports, user and addresses of a sidecar: what injection, iptables rules and the proxy agree on."""

from __future__ import annotations

from typing import Final, Literal

Family = Literal[4, 6]

USER: Final = 1337
ADMIN: Final = 15000
OUTBOUND: Final = 15001
INBOUND: Final = 15006
TUNNEL: Final = 15008
METRICS: Final = 15020
READY: Final = 15021
SCRAPE: Final = 15090
OWN_PORTS: Final = (SCRAPE, READY, METRICS, TUNNEL)
"""Never captured: the sidecar answers there itself."""
OWN_SOURCE: Final[dict[Family, str]] = {4: "127.0.0.6", 6: "::6"}
"""Whence the sidecar connects to its own application: the rules let through what comes from there, or it would be captured again."""
