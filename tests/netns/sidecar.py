"""A classic sidecar in a lab pod: a real Envoy as user 1337 with Istio's iptables rules, certificates by SDS from the agent, STRICT, RBAC by principal."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeagent.compare import envoy
from nodeagent.lab import Lab
from nodeagent.lab.network import inside
from tests.netns.identity import MOUNT, PREFIX, SOCKET, with_volume
from tests.netns.world import server

Json = dict[str, Any]
USER = 1337
ADMIN, OUTBOUND, INBOUND = 15000, 15001, 15006
HTTP_PORTS, TCP_PORTS = (80, 8080), (9000, 9001)
PROBE = "readinessProbe: {exec: {command: [sh, -c, 'grep -q :1F90 /proc/net/tcp6']}, periodSeconds: 1}"
_RULES = f"""*nat
:INBOUND -
:SIDECAR -
-A PREROUTING -p tcp -j INBOUND
-A INBOUND -p tcp -m multiport --dports 15008,15090,15021,15020 -j RETURN
-A INBOUND -p tcp -j REDIRECT --to-ports {INBOUND}
-A OUTPUT -p tcp -j SIDECAR
-A SIDECAR -s %(own)s -o lo -j RETURN
-A SIDECAR ! -d %(loopback)s -o lo -p tcp -m owner --uid-owner {USER} -j REDIRECT --to-ports {INBOUND}
-A SIDECAR -o lo -m owner ! --uid-owner {USER} -j RETURN
-A SIDECAR -m owner --uid-owner {USER} -j RETURN
-A SIDECAR ! -d %(loopback)s -o lo -p tcp -m owner --gid-owner {USER} -j REDIRECT --to-ports {INBOUND}
-A SIDECAR -o lo -m owner ! --gid-owner {USER} -j RETURN
-A SIDECAR -m owner --gid-owner {USER} -j RETURN
-A SIDECAR -d %(loopback)s -j RETURN
-A SIDECAR -p tcp -j REDIRECT --to-ports {OUTBOUND}
COMMIT
"""
RULES = {
    "iptables-restore": _RULES % {"own": "127.0.0.6/32", "loopback": "127.0.0.1/32"},
    "ip6tables-restore": _RULES % {"own": "::6/128", "loopback": "::1/128"},
}
"""By the program that takes them."""
_EXTENSION = "type.googleapis.com/envoy.extensions."


def pod(name: str, node: str, *, account: str) -> str:
    """Return the YAML of a pod that brings a sidecar, and of its Service; :func:`start` starts the sidecar."""
    text = server(name, node, account=account, annotations="sidecar.istio.io/status: '{}'")
    first, _, service = text.partition("\n\n---")
    return with_volume(first.replace(PROBE, f"{PROBE}, {MOUNT}")) + f"\n---{service}"


def start(lab: Lab, name: str, log: Path, *, admits: Sequence[str], trusts: Sequence[str], delta: bool = False) -> subprocess.Popen[bytes]:
    """Start the sidecar of the pod *name*: it admits clients of the accounts *admits* and believes servers of *trusts*. It dies with the pod."""
    config = json.dumps(_bootstrap(admits, trusts, delta))
    argv = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--", str(envoy.binary()), "--config-yaml", config]
    argv += ["--service-node", name, "--service-cluster", name, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with log.open("ab") as output:
        process = lab.popen(name, argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + 20
    while b"LIVE" not in admin(lab, name, "/ready"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)
    for program, rules in RULES.items():
        subprocess.run(inside(lab.netns(name), [program, "--noflush", "-w"]), input=rules.encode(), check=True, capture_output=True)
    return process


def admin(lab: Lab, name: str, path: str) -> bytes:
    """Return what the sidecar's administration says; empty: it does not answer."""
    argv = ["curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{ADMIN}{path}"]
    return subprocess.run(inside(lab.netns(name), argv), capture_output=True, check=False).stdout


def certificate(lab: Lab, name: str) -> tuple[str, str]:
    """Return name and serial number of the certificate that the sidecar shows; empty while it has none."""
    found = json.loads(admin(lab, name, "/certs") or "{}").get("certificates", [])
    chains = [one for each in found for one in each.get("cert_chain", [])]
    uris = {alternative["uri"] for one in chains for alternative in one["subject_alt_names"] if alternative.get("uri", "").startswith(PREFIX)}
    serials = sorted({one["serial_number"] for one in chains if any(alternative.get("uri") in uris for alternative in one["subject_alt_names"])})
    return (uris.pop(), serials[-1]) if len(uris) == 1 and len(serials) == 1 else ("", "")


def _bootstrap(admits: Sequence[str], trusts: Sequence[str], delta: bool) -> Json:
    downstream = {
        "@type": f"{_EXTENSION}transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(["istio-http/1.1", "istio"], [{"prefix": "spiffe://cluster.local/"}], delta),
    }
    rules = {"action": "ALLOW", "policies": {"peers": {"permissions": [{"any": True}], "principals": [_principal(account) for account in admits]}}}
    inbound = [_chain(port, _http("in", f"in-{port}", rules), downstream) for port in HTTP_PORTS]
    inbound += [_chain(port, _tcp("in", f"in-{port}"), downstream, before=[_rbac_of_tcp(rules)]) for port in TCP_PORTS]
    outbound = [_chain(port, _http("out", "out-http")) for port in HTTP_PORTS] + [_chain(port, _tcp("out", "out-tcp")) for port in TCP_PORTS]
    filters = ["original_dst.v3.OriginalDst", "tls_inspector.v3.TlsInspector"]
    listeners = [_listener(address, OUTBOUND, outbound, filters[:1]) for address in ("0.0.0.0", "::")]
    listeners += [_listener(address, INBOUND, inbound, filters) for address in ("0.0.0.0", "::")]
    servers = [{"exact": f"{PREFIX}/{account}"} for account in trusts]
    clusters = [_original(name, _tls([protocol], servers, delta)) for name, protocol in (("out-http", "istio-http/1.1"), ("out-tcp", "istio"))]
    clusters += [_application(port) for port in (*HTTP_PORTS, *TCP_PORTS)]
    clusters.append(_agent())
    admin_address = {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}
    return {"admin": {"address": admin_address}, "static_resources": {"listeners": listeners, "clusters": clusters}}


def _principal(account: str) -> Json:
    return {"authenticated": {"principal_name": {"exact": f"{PREFIX}/{account}"}}}


def _sds(name: str, delta: bool) -> Json:
    service = {"envoy_grpc": {"cluster_name": "agent"}}
    source = {"api_type": "DELTA_GRPC" if delta else "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}


def _tls(protocols: list[str], names: list[Json], delta: bool) -> Json:
    return {
        "alpn_protocols": protocols,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [_sds("default", delta)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": name} for name in names]},
            "validation_context_sds_secret_config": _sds("ROOTCA", delta),
        },
    }


def _agent() -> Json:
    options = {"@type": f"{_EXTENSION}upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": "agent",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": _assignment("agent", {"pipe": {"path": SOCKET}}),
    }


def _original(name: str, tls: Json) -> Json:
    context = {"@type": f"{_EXTENSION}transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": tls}
    return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "transport_socket": {"name": "tls", "typed_config": context}}


def _application(port: int) -> Json:
    # From 127.0.0.6, as Istio's: what comes from there is the sidecar's own and is not captured again.
    own = {"source_address": {"address": "127.0.0.6", "port_value": 0}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 8080 if port == 80 else port}}
    return {"name": f"in-{port}", "type": "STATIC", "upstream_bind_config": own, "load_assignment": _assignment(f"in-{port}", address)}


def _assignment(name: str, address: Json) -> Json:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def _listener(address: str, port: int, chains: list[Json], filters: list[str]) -> Json:
    named = [{"name": each, "typed_config": {"@type": f"{_EXTENSION}filters.listener.{each}"}} for each in filters]
    where = {"socket_address": {"address": address, "port_value": port}}
    return {"name": f"{address}-{port}", "address": where, "listener_filters": named, "filter_chains": chains}


def _chain(port: int, last: Json, tls: Json | None = None, *, before: Sequence[Json] = ()) -> Json:
    match: Json = {"destination_port": port} | ({"transport_protocol": "tls"} if tls else {})
    chain: Json = {"filter_chain_match": match, "filters": [*before, last]}
    return chain | ({"transport_socket": {"name": "tls", "typed_config": tls}} if tls else {})


def _http(prefix: str, cluster: str, rules: Json | None = None) -> Json:
    filters = [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_EXTENSION}filters.http.router.v3.Router"}}]
    manager: Json = {
        "@type": f"{_EXTENSION}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": prefix,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]},
        "http_filters": filters,
    }
    if rules:
        filters.insert(0, {"name": "envoy.filters.http.rbac", "typed_config": {"@type": f"{_EXTENSION}filters.http.rbac.v3.RBAC", "rules": rules}})
        manager |= {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"uri": True}}
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _rbac_of_tcp(rules: Json) -> Json:
    config = {"@type": f"{_EXTENSION}filters.network.rbac.v3.RBAC", "stat_prefix": "in", "rules": rules}
    return {"name": "envoy.filters.network.rbac", "typed_config": config}


def _tcp(prefix: str, cluster: str) -> Json:
    proxy = {"@type": f"{_EXTENSION}filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": prefix, "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}
