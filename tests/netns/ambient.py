"""A proxy of an ambient mesh in a lab pod, played by Envoy: HBONE both ways as Istio configures a
waypoint's, with certificates by SDS.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodeagent.compare import envoy
from nodeagent.inject.envoy import SDS_SOCKET
from nodeagent.istio import ADMIN_PORT, AMBIENT_REDIRECTION, TUNNEL_PORT
from nodeagent.lab import Lab
from tests.netns.classic import unprivileged
from tests.netns.identity import PREFIX, with_volume
from tests.netns.sidecar import MOUNT, PROBE, admin
from tests.netns.world import bracketed, server
from tests.waiting import eventually

Json = dict[str, Any]
_EXTENSION = "type.googleapis.com/envoy.extensions."


def pod(name: str, node: str, *, account: str) -> str:
    """Return the YAML of a pod that is Istio's, and of its Service; :func:`start` starts its proxy."""
    text = server(name, node, account=account, annotations=f"{AMBIENT_REDIRECTION}: enabled")
    first, _, service = text.partition("\n\n---")
    return with_volume(first.replace(PROBE, f"{PROBE}, {MOUNT}")) + f"\n---{service}"


def start(
    lab: Lab,
    name: str,
    log: Path,
    *,
    leads: Mapping[int, tuple[str, int]] | None = None,
    admits: Sequence[str] = (),
    takes: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start the proxy of the pod *name*. What connects to a port of *leads* at 127.0.0.1 is brought to
    the address and port there by HBONE; at the addresses *takes* it takes HBONE of the accounts *admits*.
    """
    argv = unprivileged(
        [str(envoy.binary()), "--concurrency", "1", "--config-yaml", json.dumps(_bootstrap(leads or {}, admits, takes))]
    )
    with log.open("ab") as output:
        process = lab.popen(name, argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def live() -> bool:
        assert process.poll() is None and b"LIVE" in admin(lab, name, "/ready"), log.read_text(errors="replace")[-2000:]
        return True

    eventually(live)
    return process


def counted(lab: Lab, name: str, counter: str) -> int:
    """Return what the proxy of the pod *name* counts as *counter*."""
    found = dict(line.rsplit(": ", 1) for line in admin(lab, name, "/stats").decode().splitlines() if ": " in line)
    return int(found.get(counter, "0"))


def _bootstrap(leads: Mapping[int, tuple[str, int]], admits: Sequence[str], takes: Sequence[str]) -> Json:
    listeners = [_lead(port, *to) for port, to in leads.items()]
    listeners += [_taker(address, admits) for address in takes]
    clusters = [_tunnel(address) for address in sorted({address for address, _ in leads.values()})]
    clusters.append({"name": "sds", **_at({"pipe": {"path": SDS_SOCKET}}, "sds"), **_http2()})
    clusters.append(
        {
            "name": "application",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
        }
    )
    return {
        "node": {"id": "ambient", "cluster": "ambient"},
        "admin": {"address": _address("127.0.0.1", ADMIN_PORT)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _lead(port: int, address: str, to: int) -> Json:
    """A listener whose connections are brought to *address* and the port *to*."""
    hostname = f"{bracketed(address)}:{to}"
    proxy = _typed(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="lead",
        cluster=address,
        tunneling_config={"hostname": hostname},
    )
    return {"name": hostname, "address": _address("127.0.0.1", port), "filter_chains": [{"filters": [proxy]}]}


def _taker(address: str, admits: Sequence[str]) -> Json:
    """A listener that takes HBONE of the accounts *admits*, and brings what is inside where it asks for."""
    principals = [{"authenticated": {"principal_name": {"exact": f"{PREFIX}/{account}"}}} for account in admits]
    rules = {"policies": {"peers": {"permissions": [{"any": True}], "principals": principals}}} if admits else {}
    filters = [_typed("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules=rules)] if admits else []
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "application",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="taken",
        stream_idle_timeout="0s",
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[*filters, _typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
    )
    tls = _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=_common_tls(),
    )
    chain = {"filters": [manager], "transport_socket": tls}
    return {"name": address, "address": _address(address, TUNNEL_PORT), "filter_chains": [chain]}


def _tunnel(address: str) -> Json:
    """The connections of HBONE to the pod at *address*."""
    tls = _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=_common_tls(),
    )
    return {"name": address, **_at(_address(address, TUNNEL_PORT), address), **_http2(), "transport_socket": tls}


def _at(address: Json, name: str) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _http2() -> Json:
    kind = "upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"{_EXTENSION}{kind}", "explicit_http_config": {"http2_protocol_options": {}}}
    return {"typed_extension_protocol_options": {f"envoy.extensions.{kind}": options}}


def _common_tls() -> Json:
    def sds(name: str) -> Json:
        service = {"envoy_grpc": {"cluster_name": "sds"}}
        source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
        return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}

    names = [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [sds("default")],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": sds("ROOTCA"),
        },
    }


def _typed(name: str, kind: str, **config: object) -> Json:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSION}{kind}"} | config}
