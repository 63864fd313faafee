"""The bootstrap of an Envoy that is one pod's classic sidecar: Istio's ports and filters, without a
control plane. Pure.

It needs nothing but the pod's spec: certificates come by SDS over the socket of the agent's CSI
volume, the pod's address by the variable POD_IP, which Kubernetes puts into the command line. What
is in force is fixed when the pod is injected.
"""

from __future__ import annotations

from typing import Final

from nodeagent.errors import InjectionError
from nodeagent.inject.model import Document
from nodeagent.inject.rbac import Rules
from nodeagent.inject.values import Values
from nodeagent.istio import ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, OWN_SOURCE, READY_PORT, SCRAPE_PORT, STATUS_PORT
from nodeagent.sidecar.probes import target

SDS_SOCKET: Final = "/run/nodeagent/sds/socket"
TEXT_FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% '
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% "
    '%CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "
    '"%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" '
    '"%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
"""Istio's default (istio/istio pilot/pkg/model/log.go: EnvoyTextLogFormat)."""
VALUES: Final = frozenset(
    {"trustDomain", "tcpPorts", "mtls", "accessLog", "bufferBytes", "pooling", "authorizationPolicies"}
)
"""Names of the values that the bootstrap is made of, whether or not a template refers to them itself."""
_EXTENSION: Final = "type.googleapis.com/envoy.extensions."
_POD_IP: Final = "$(POD_IP)"
_PLAIN_HTTP: Final = ["http/1.0", "http/1.1"]
_MTLS_HTTP: Final = ["istio-http/1.0", "istio-http/1.1", "istio-h2"]
_MTLS_HTTP2: Final = ["istio-h2", "istio", "h2"]
"""What Istio's sidecars offer for HTTP/2 (its alpn_override): the first chooses the peer's filter chain, and
the peer takes the last, which is what its own connection manager knows HTTP/2 by.
"""
_MTLS_TCP: Final = ["istio", "istio-peer-exchange"]
_OWN_SOURCE: Final = {"IPv4": OWN_SOURCE[4], "IPv6": OWN_SOURCE[6]}
"""Istio's InboundPassthroughBindIpv4 and 6."""
_ANY: Final = {"IPv4": "0.0.0.0", "IPv6": "::"}
_BOTH: Final[Document] = {"http_protocol_options": {}, "http2_protocol_options": {}}
_SNIFF: Final = "0.1s"
"""How long a client may keep silent before its connection is carried as TCP: the agent's own proxy.timeouts.sniff."""
_HANDSHAKE: Final = "10s"
"""How long a client that must begin with a ClientHello may keep silent: the agent's own proxy.timeouts.handshake."""


def bootstrap(values: Values, probes: Document, rules: Rules) -> Document:
    """Return the bootstrap for a pod.

    *probes* is what :func:`nodeagent.inject.probes.rewrite` returned first: what port 15020 answers
    for; *rules* the policies that are in force. Raises InjectionError for values that do not go
    together.
    """
    if not values.mesh_ranges:
        raise InjectionError(
            "values.meshRanges: missing: allowed: the pods' and Services' address ranges, as 10.244.0.0/16,10.96.0.0/12"
        )
    for network in values.plaintext_ranges:
        if network in values.mesh_ranges:
            raise InjectionError(
                f"values.plaintextRanges: {network}: allowed: a range within one of meshRanges, not the same"
            )
    asked = {path: _Probe(index, probe) for index, (path, probe) in enumerate(_literal(probes).items())}
    listeners = [
        _outbound(values),
        _inbound(values, Rules(tuple(map(_literal, rules.http)), tuple(map(_literal, rules.tcp)))),
        _ready(values),
        _metrics(values),
        _status(values, asked),
    ]
    reuse = {} if values.pooling else {"common_http_protocol_options": {"max_requests_per_connection": 1}}
    clusters = [
        _original(values, "mesh-http", _upstream_tls(values, ["istio-http/1.1"]))
        | _protocol(explicit_http_config={"http_protocol_options": {}}, **reuse),
        _original(values, "mesh-http2", _upstream_tls(values, _MTLS_HTTP2)) | _http2(),
        _original(values, "mesh-tcp", _upstream_tls(values, ["istio"])),
        _original(values, "PassthroughCluster"),
        _original(values, "InboundPassthroughCluster")
        | _from_own_source(values)
        | _protocol(use_downstream_protocol_config=_BOTH, **reuse),
        {"name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "1s"},
        _static("admin", _address("127.0.0.1", ADMIN_PORT)),
        _static("sds", {"pipe": {"path": SDS_SOCKET}}) | _http2(),
        *(probe.cluster(values) for probe in asked.values()),
    ]
    admin = {"address": _address("127.0.0.1", ADMIN_PORT)}
    return {"admin": admin, "static_resources": {"listeners": listeners, "clusters": clusters}}


def literal(text: str) -> str:
    """Return *text* such that Kubernetes leaves it as it is in a command or a variable: it expands
    ``$(NAME)``, and ``$$`` is ``$``.
    """
    return text.replace("$", "$$")


def _literal(document: Document) -> Document:
    return {key: _each_literal(child) for key, child in document.items()}


def _each_literal(value: object) -> object:
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, dict):
        return _literal(value)
    return [_each_literal(child) for child in value] if isinstance(value, list) else value


# -- listeners --


def _outbound(values: Values) -> Document:
    """What the application dials: the mesh's ranges by mTLS, everything else as it is. The longest
    range decides (Envoy's filter chain matching).
    """
    chains = [_chain({"destination_port": OUTBOUND_PORT}, [_tcp("blackhole", "BlackHoleCluster", "")])]
    for ranges, http, http2, tcp in (
        (values.mesh_ranges, "mesh-http", "mesh-http2", "mesh-tcp"),
        (values.plaintext_ranges, *("PassthroughCluster",) * 3),
        (None, *("PassthroughCluster",) * 3),
    ):
        match = {} if ranges is None else {"prefix_ranges": [_prefix(network) for network in ranges]}
        if ranges != ():
            chains.append(
                _chain(match | {"application_protocols": _PLAIN_HTTP}, [_http("outbound", http, values.access_log)])
            )
            if http2 != tcp:  # outside the mesh what is no HTTP/1 goes on as it is
                chains.append(
                    _chain(match | {"application_protocols": ["h2c"]}, [_http("outbound", http2, values.access_log)])
                )
            chains.append(_chain(match, [_tcp("outbound", tcp, values.access_log)]))
    return _captured("outbound", OUTBOUND_PORT, values, chains, ["original_dst", "http_inspector"])


def _inbound(values: Values, rules: Rules) -> Document:
    """What comes to the pod: mTLS, and plaintext where it is allowed; to the address and port that the client meant."""
    http = _http("inbound", "InboundPassthroughCluster", values.access_log, rules.http)
    tcp = [*_network_rbac(rules), _tcp("inbound", "InboundPassthroughCluster", values.access_log)]
    tls = {"transport_protocol": "tls"}
    chains = [
        _chain({"destination_port": INBOUND_PORT}, [_tcp("blackhole", "BlackHoleCluster", "")]),
        _chain(
            tls | {"application_protocols": _MTLS_HTTP},
            [http],
            _downstream_tls(values, ["istio-http/1.1", "istio-http/1.0", "h2", "http/1.1"]),
        ),
        _chain(tls | {"application_protocols": _MTLS_TCP}, tcp, _downstream_tls(values, _MTLS_TCP)),
    ]
    if values.mtls == "PERMISSIVE":
        chains.append(
            _chain({"transport_protocol": "raw_buffer", "application_protocols": [*_PLAIN_HTTP, "h2c"]}, [http])
        )
        chains.append(_chain({"transport_protocol": "raw_buffer"}, tcp))
        chains.append(_chain(tls, tcp))  # the application's own TLS
    inbound = _captured("inbound", INBOUND_PORT, values, chains, ["original_dst", "tls_inspector", "http_inspector"])
    if values.mtls == "STRICT":  # a silent client is no plaintext one: a peer on a busy node would be refused as such
        inbound |= {"listener_filters_timeout": _HANDSHAKE, "continue_on_listener_filters_timeout": False}
    return inbound


def _ready(values: Values) -> Document:
    """15021: ready when Envoy is, which waits for its first certificate."""
    return _own("ready", READY_PORT, values, [_route({"path": "/healthz/ready"}, "admin", prefix_rewrite="/ready")])


def _metrics(values: Values) -> Document:
    return _own("metrics", SCRAPE_PORT, values, [_route({"path": "/stats/prometheus"}, "admin")])


def _status(values: Values, probes: dict[str, _Probe]) -> Document:
    """15020: metrics, and the application's probes."""
    routes = [_route({"path": "/stats/prometheus"}, "admin")]
    routes += [probe.route(path) for path, probe in probes.items() if probe.is_http]
    checks = [probe.filter(path) for path, probe in probes.items() if not probe.is_http]
    return _own("status", STATUS_PORT, values, routes, checks)


def _captured(name: str, port: int, values: Values, chains: list[Document], inspectors: list[str]) -> Document:
    """A listener for what iptables redirects. HTTP is known by its first line (the last of
    *inspectors*), but on ports that are declared TCP.
    """
    types = {"original_dst": "OriginalDst", "tls_inspector": "TlsInspector", "http_inspector": "HttpInspector"}
    filters = [
        _typed(f"envoy.filters.listener.{each}", f"filters.listener.{each}.v3.{types[each]}") for each in inspectors
    ]
    if values.tcp_ports:
        ranges = [{"destination_port_range": {"start": each, "end": each + 1}} for each in values.tcp_ports]
        filters[-1]["filter_disabled"] = {"or_match": {"rules": ranges}} if len(ranges) > 1 else ranges[0]
    options = {
        "listener_filters_timeout": _SNIFF,
        "continue_on_listener_filters_timeout": True,
        "traffic_direction": name.upper(),
    }
    return _listener(name, port, values, chains) | {"listener_filters": filters} | options


def _own(
    name: str, port: int, values: Values, routes: list[Document], filters: list[Document] | None = None
) -> Document:
    """A port where the sidecar itself is asked, by the kubelet and by Prometheus."""
    return _listener(name, port, values, [_chain({}, [_manager(name, routes, filters or [])])])


def _listener(name: str, port: int, values: Values, chains: list[Document]) -> Document:
    first, *others = [_address(_ANY[family], port) for family in values.ip_families]
    more = {"additional_addresses": [{"address": address} for address in others]} if others else {}
    return {
        "name": name,
        "address": first,
        "filter_chains": chains,
        "per_connection_buffer_limit_bytes": values.buffer_bytes,
    } | more


def _chain(match: Document, filters: list[Document], tls: Document | None = None) -> Document:
    return {"filter_chain_match": match, "filters": filters} | ({"transport_socket": tls} if tls else {})


def _prefix(network: str) -> Document:
    address, _, length = network.partition("/")
    return {"address_prefix": address, "prefix_len": int(length)}


def _address(host: str, port: int) -> Document:
    return {"socket_address": {"address": host, "port_value": port}}


# -- filters --


def _typed(name: str, kind: str, **config: object) -> Document:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSION}{kind}"} | config}


def _http(direction: str, cluster: str, log: str, rules: tuple[Document, ...] = ()) -> Document:
    filters = [_typed("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules=each) for each in rules]
    # No time limit of its own, as Istio's routes; paths are normalised before rules see them
    # (Istio's BASE).
    options: Document = {
        "stream_idle_timeout": "0s",
        "normalize_path": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    }
    options |= {"server_header_transformation": "PASS_THROUGH", "access_log": _log(log)}
    if direction == "inbound":
        options |= {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"uri": True}}
    return _manager(direction, [_route({"prefix": "/"}, cluster)], filters, **options)


def _manager(prefix: str, routes: list[Document], filters: list[Document], **options: object) -> Document:
    hosts = [{"name": "all", "domains": ["*"], "routes": routes}]
    router = _typed("envoy.filters.http.router", "filters.http.router.v3.Router")
    config = {
        "stat_prefix": prefix,
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [*filters, router],
    } | options
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        **config,
    )


def _route(match: Document, cluster: str, **action: object) -> Document:
    return {"match": match, "route": {"cluster": cluster, "timeout": "0s"} | action}


def _tcp(prefix: str, cluster: str, log: str) -> Document:
    return _typed(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=prefix,
        cluster=cluster,
        access_log=_log(log),
    )


def _network_rbac(rules: Rules) -> list[Document]:
    return [
        _typed("envoy.filters.network.rbac", "filters.network.rbac.v3.RBAC", stat_prefix="inbound", rules=each)
        for each in rules.tcp
    ]


def _log(path: str) -> list[Document]:
    if not path:
        return []
    form = {"log_format": {"text_format_source": {"inline_string": TEXT_FORMAT}}}
    if path == "-":
        # The descriptor, not /dev/stdout: a user that is not root may not open the pipe behind it
        # again.
        return [_typed("envoy.access_loggers.stdout", "access_loggers.stream.v3.StdoutAccessLog", **form)]
    return [_typed("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", path=literal(path), **form)]


# -- TLS --


def _sds(name: str) -> Document:
    service = {"envoy_grpc": {"cluster_name": "sds"}}
    source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    # Without a time limit: Envoy is not ready, and takes no traffic, before it can prove who it is
    # (as Istio's).
    return {
        "name": name,
        "sds_config": {"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": source},
    }


def _common_tls(values: Values, protocols: list[str]) -> Document:
    names = [{"san_type": "URI", "matcher": {"prefix": f"spiffe://{values.trust_domain}/"}}]
    return {
        "alpn_protocols": protocols,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [_sds("default")],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": _sds("ROOTCA"),
        },
    }


def _downstream_tls(values: Values, protocols: list[str]) -> Document:
    config = {"require_client_certificate": True, "common_tls_context": _common_tls(values, protocols)}
    return _typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", **config)


def _upstream_tls(values: Values, protocols: list[str]) -> Document:
    return _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=_common_tls(values, protocols),
    )


# -- clusters --


def _original(values: Values, name: str, tls: Document | None = None) -> Document:
    """To where the connection was going. Without a limit of connections, as Istio's default."""
    most = 2**32 - 1
    limits = {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most}
    cluster: Document = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
    }
    cluster["per_connection_buffer_limit_bytes"] = values.buffer_bytes
    return cluster | {"circuit_breakers": {"thresholds": [limits]}} | ({"transport_socket": tls} if tls else {})


def _static(name: str, address: Document) -> Document:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _from_own_source(values: Values) -> Document:
    first, *others = [{"address": _OWN_SOURCE[family], "port_value": 0} for family in values.ip_families]
    more = {"extra_source_addresses": [{"address": address} for address in others]} if others else {}
    return {"upstream_bind_config": {"source_address": first} | more}


def _protocol(**options: object) -> Document:
    kind = "upstreams.http.v3.HttpProtocolOptions"
    return {
        "typed_extension_protocol_options": {f"envoy.extensions.{kind}": {"@type": f"{_EXTENSION}{kind}"} | options}
    }


def _http2() -> Document:
    return _protocol(explicit_http_config={"http2_protocol_options": {}})


# -- probes --


class _Probe:
    """One rewritten probe: HTTP is passed on, TCP and gRPC are asked by Envoy's own health checks,
    whose last result is told.
    """

    def __init__(self, number: int, probe: Document) -> None:
        self.name = f"probe-{number}"
        self._timeout = f"{probe['timeoutSeconds']}s"
        ((self._kind, self._handler),) = [(key, value) for key, value in probe.items() if key != "timeoutSeconds"]

    @property
    def is_http(self) -> bool:
        return self._kind == "httpGet"

    def route(self, path: str) -> Document:
        """Just what the kubelet asks: this way leads past mTLS and policies. A redirect is a
        success to the kubelet; it must not follow it to the sidecar's port, so it is not told
        whereto.
        """
        exact = [
            {"name": name, "string_match": {"exact": value}} for name, value in ((":method", "GET"), (":path", path))
        ]
        action = _route(
            {"path": path, "headers": exact},
            self.name,
            prefix_rewrite=target(self._handler.get("path") or "/"),
        )
        action["route"]["timeout"] = self._timeout
        return action | {"response_headers_to_remove": ["location"]}

    def filter(self, path: str) -> Document:
        matched = [{"name": ":path", "string_match": {"exact": path}}]
        healthy = {self.name: {"value": 100}}
        config: Document = {"pass_through_mode": False, "headers": matched, "cluster_min_healthy_percentages": healthy}
        return _typed("envoy.filters.http.health_check", "filters.http.health_check.v3.HealthCheck", **config)

    def cluster(self, values: Values) -> Document:
        cluster = _static(self.name, _address(_POD_IP, self._handler["port"])) | _from_own_source(values)
        if self._kind == "httpGet":
            return cluster | (self._unverified() if self._handler.get("scheme") == "HTTPS" else {})
        often = dict.fromkeys(("interval", "no_traffic_interval", "no_traffic_healthy_interval"), "1s")
        check: Document = {
            "timeout": self._timeout,
            "unhealthy_threshold": 1,
            "healthy_threshold": 1,
            "reuse_connection": False,
        } | often
        if self._kind == "tcpSocket":
            return cluster | {"health_checks": [check | {"tcp_health_check": {}}]}
        service = {"service_name": self._handler["service"]} if self._handler.get("service") else {}
        return cluster | _http2() | {"health_checks": [check | {"grpc_health_check": service}]}

    def _unverified(self) -> Document:
        """The kubelet does not verify certificates either."""
        return {
            "transport_socket": _typed(
                "envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context={}
            )
        }
