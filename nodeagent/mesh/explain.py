"""What would happen to a connection or request, step by step and in words: what ``nodeagent
explain`` prints. Pure.

The steps are in the order in which the proxy takes them, and decided by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Literal

from nodeagent.config import DeliverySetting
from nodeagent.errors import ConfigError
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, Entry, Protocol, Service, ServicePort, Workload, policies_of
from nodeagent.policy.authorization import Authorizer, CompiledPolicy, ConnectionFacts, Decision, RequestFacts
from nodeagent.policy.claims import Claims
from nodeagent.policy.model import AuthorizationPolicy, MtlsMode, RateLimit, RequestAuthentication

Outcome = Literal["allowed", "refused", "unknown"]
KernelPath = Callable[[Workload | None, Workload, int], str]
"""Says in words which path a connection of a client to a workload's port takes, and why."""
_SCHEME: Final = "spiffe://"
_DIALS: Final = {"network": "over the pods' interfaces", "inside": "within the server's pod"}
_CLUSTER: Final = ".svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Question:
    """SRC: ``[NAMESPACE/]POD``, an address, a SPIFFE ID, or ``-`` for a client without identity.
    DST: ``[NAMESPACE/]NAME[:PORT]`` of a Service or pod, a Service's host, or ADDRESS:PORT.
    *method* empty: a connection, no request.
    """

    source: str
    destination: str
    method: str = ""
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""


@dataclass(frozen=True, slots=True)
class Step:
    stage: str
    words: str


@dataclass(frozen=True, slots=True)
class Explanation:
    steps: tuple[Step, ...]
    verdict: Outcome

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "steps": [{"stage": step.stage, "words": step.words} for step in self.steps]}


@dataclass(frozen=True, slots=True)
class _Client:
    workload: Workload | None
    principal: str
    """As policies compare it; empty: none that could be proved."""
    address: str


@dataclass(frozen=True, slots=True)
class _Server:
    workload: Workload
    port: int
    protocol: Protocol
    service: Service | None


@dataclass(frozen=True, slots=True)
class _Facts:
    """One client, one server, one request."""

    client: _Client
    server: _Server
    question: Question
    principal: str
    """What the server's side knows of the client."""
    trust_domain: str
    claims: Claims | None

    @property
    def http(self) -> bool:
        return self.server.protocol == "http" or (self.server.protocol == "auto" and bool(self.question.method))

    def connection(self) -> ConnectionFacts:
        to = next(iter(self.server.workload.addresses), "")
        presumed = "" if self.principal or self.client.workload is None else self.client.principal
        return ConnectionFacts(
            self.principal, self.client.address, self.client.address, to, self.server.port, presumed=presumed
        )

    def request(self) -> RequestFacts | None:
        question = self.question
        service = self.server.service
        host = question.headers.get("host", service.host if service else self.server.workload.pod)
        return (
            RequestFacts(question.method, question.path, host, question.headers.get, self.claims)
            if question.method and self.http
            else None
        )


def explain(
    entries: Iterable[Entry],
    question: Question,
    *,
    node: str,
    trust_domain: str,
    setting: DeliverySetting = "auto",
    kernel_path: KernelPath | None = None,
    claims: Claims | None = None,
) -> Explanation:
    """Return what happens to *question* by *entries*, the snapshot of *node*; *claims* are those of
    the request's token, were it verified. *setting* is ``redirect.delivery`` of agent.yaml.

    Raises ConfigError when the source or the destination is not known.
    """
    known = list(entries)
    client = _client(known, question.source)
    server, steps = _server(known, question.destination)
    if server is None:
        return Explanation(tuple(steps), "refused")
    principal, words, refused = _mtls(client, server)
    steps.append(Step("mtls", words))
    if refused:
        return Explanation(tuple(steps), "refused")
    workload = server.workload
    steps.append(Step("path", kernel_path(client.workload, workload, server.port) if kernel_path else _path(workload)))
    if workload.node != node:
        steps.append(
            Step(
                "policy",
                f"the policies of {workload.namespace}/{workload.pod} are known on its own node: ask the agent of "
                f"{workload.node}",
            )
        )
        return Explanation(tuple(steps), "unknown")
    if client.workload is not None and client.workload.node == node and client.workload.enrolled and workload.enrolled:
        unread = next((entry for entry in known if entry.key == UNREAD), None)
        found = delivery(setting, client.workload, workload, unread)
        steps.append(Step("delivery", f"the proxy dials {_DIALS[found.way]}: {found.why}"))
    facts = _Facts(client, server, question, principal, trust_domain, claims)
    verdict, more = _policies(facts, policies_of(workload, {entry.key: entry for entry in known}.get))
    return Explanation((*steps, *more), verdict)


# -- who and where --


def _client(entries: list[Entry], text: str) -> _Client:
    if text == "-":
        return _Client(None, "", "")
    if text.startswith(_SCHEME):
        return _Client(None, text.removeprefix(_SCHEME), "")
    found = _workload(entries, text)
    if found is None:
        if _is_address(text):
            return _Client(None, "", text)
        raise ConfigError(
            f"SRC: {text!r:.120}: no such pod: [NAMESPACE/]POD, an address, a SPIFFE ID, or - for a client "
            "without identity"
        )
    return _Client(found, found.identity.removeprefix(_SCHEME), next(iter(found.addresses), ""))


def _server(entries: list[Entry], text: str) -> tuple[_Server | None, list[Step]]:
    """Return what serves the destination *text* and the step of finding it; None: nothing does."""
    name, port = _split_port(text)
    service = _service(entries, name)
    if service is None:
        workload = _workload(entries, name)
        if workload is None:
            raise ConfigError(
                f"DST: {text!r:.120}: no such Service or pod: [NAMESPACE/]NAME[:PORT], a Service's host, or "
                "ADDRESS:PORT"
            )
        number = port or next((number for number, _ in workload.ports), 0)
        if not number:
            raise ConfigError(f"DST: {text!r:.120}: a port is needed: no Service selects the pod")
        words = f"pod {workload.namespace}/{workload.pod} on {workload.node}, port {number}"
        return _Server(workload, number, workload.protocol_at(number), None), [Step("route", words)]
    chosen = _service_port(service, port, text)
    workloads = {entry.uid: entry for entry in entries if isinstance(entry, Workload)}
    serving = [(endpoint, workloads[endpoint.uid]) for endpoint in chosen.endpoints if endpoint.uid in workloads]
    where = f"Service {service.host} port {chosen.port} ({chosen.protocol})"
    if not serving:
        return None, [Step("route", f"{where} has no ready endpoint: 503, flag UH")]
    endpoint, first = serving[0]
    pods = ", ".join(dict.fromkeys(f"{workload.namespace}/{workload.pod}" for _, workload in serving))
    return _Server(first, endpoint.port, chosen.protocol, service), [
        Step(
            "route",
            f"{where} is served by {pods}; what follows is for {first.namespace}/{first.pod} on {first.node}, "
            f"port {endpoint.port}",
        )
    ]


def _service_port(service: Service, port: int, text: str) -> ServicePort:
    found = next((each for each in service.ports if each.port == port or not port), None)
    if found is None:
        raise ConfigError(
            f"DST: {text!r:.120}: {service.host} has no such port: allowed: "
            f"{', '.join(str(each.port) for each in service.ports) or 'none'}"
        )
    return found


def _split_port(text: str) -> tuple[str, int]:
    name, separator, port = text.rpartition(":")
    if not separator or _is_address(text):
        return text, 0
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigError(f"DST: {text!r:.120}: the port must be a number from 1 to 65535")
    return name.removeprefix("[").removesuffix("]"), int(port)


def _service(entries: list[Entry], name: str) -> Service | None:
    if "/" in name:
        namespace, own = name.split("/", 1)
    else:
        own, _, namespace = name.removesuffix(_CLUSTER).removesuffix(".svc").partition(".")
    services = (entry for entry in entries if isinstance(entry, Service))
    return next(
        (
            each
            for each in services
            if (each.namespace, each.name) == (namespace or "default", own) or name in each.addresses
        ),
        None,
    )


def _workload(entries: list[Entry], name: str) -> Workload | None:
    namespace, own = name.split("/", 1) if "/" in name else ("default", name)
    workloads = (entry for entry in entries if isinstance(entry, Workload))
    return next(
        (each for each in workloads if (each.namespace, each.pod) == (namespace, own) or name in each.addresses), None
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# -- the steps --


def _mtls(client: _Client, server: _Server) -> tuple[str, str, bool]:
    """Return the principal that the server's side knows, the step in words, and whether the connection is refused."""
    workload = server.workload
    port = server.port
    mode: MtlsMode = workload.mtls_at(port)
    source = f"PeerAuthentication {workload.mtls_from}" if workload.mtls_from else "mtls.mode of agent.yaml"
    said = f"{mode} (by {source}{', portLevelMtls' if port in dict(workload.port_mtls) else ''})"
    proxied = workload.enrolled or workload.sidecar
    if not proxied or port in workload.excluded_ports:
        why = f"excludeInboundPorts names port {port}" if proxied else "the pod is not enrolled and has no sidecar"
        return "", f"{said}, but {why}: nobody checks identity or policy there", False
    local = (
        client.workload is not None
        and client.workload.enrolled
        and workload.enrolled
        and client.workload.node == workload.node
    )
    if local:
        return (
            client.principal,
            f"{said}: both pods are on {workload.node}: the kernel proves the client, {client.principal}, without TLS",
            False,
        )
    capable = client.workload.enrolled or client.workload.sidecar if client.workload else bool(client.principal)
    if mode == "DISABLE":
        return "", f"{said}: plaintext between nodes; the client's identity is not known to the server", False
    if capable and client.principal:
        return client.principal, f"{said}: mTLS; the client's certificate proves {client.principal}", False
    if mode == "STRICT":
        return (
            "",
            (
                f"{said}: the client cannot prove an identity: refused (only probes that the pod declares pass, and "
                "only from its node)"
            ),
            True,
        )
    presumed = (
        f": no ALLOW is for it; DENY and CUSTOM take it for {client.principal}, by its address"
        if client.principal
        else ""
    )
    return "", f"{said}: plaintext is taken; the client's identity is not known{presumed}", False


def _path(workload: Workload) -> str:
    return f"nodeagent.io/path is {workload.path}" if workload.path != "auto" else "nodeagent.io/path is not set: auto"


def _policies(facts: _Facts, entries: tuple[Entry, ...]) -> tuple[Outcome, list[Step]]:
    steps: list[Step] = []
    if not facts.http and (unparsed := _unparsed(facts, entries)) is not None:
        return unparsed
    policies = [entry for entry in entries if isinstance(entry, AuthorizationPolicy)]
    authorizer = Authorizer.compile(policies, http=facts.http, trust_domain=facts.trust_domain)
    connection = facts.connection()
    request = facts.request()
    outcome = authorizer.connection(connection)
    decision = outcome if isinstance(outcome, Decision) else None
    custom = (
        decision.custom
        if decision is not None
        else outcome.custom(request)
        if request is not None and not isinstance(outcome, Decision)
        else ""
    )
    if custom:
        steps.append(Step("custom", f"the external authorizer {custom} is asked first, and must allow it"))
    if facts.http:
        steps += _jwt(facts, [entry for entry in entries if isinstance(entry, RequestAuthentication)])
    steps += [Step("policy", line) for line in authorizer.trace(connection, request)]
    if decision is None and request is not None and not isinstance(outcome, Decision):
        decision = outcome.decide(request)
    if decision is None:
        steps.append(Step("verdict", "it depends on the request: say METHOD and PATH"))
        return "unknown", steps
    for note in decision.notes:
        steps.append(
            Step(
                note.kind.replace("_", " "),
                f"{note.policy or 'no ALLOW policy'}{f', rule {note.rule}' if note.rule >= 0 else ''}: reported only",
            )
        )
    answer = (
        "allowed"
        if decision.allowed
        else "refused with 403, RBAC: access denied"
        if facts.http
        else "refused: the connection is reset"
    )
    steps.append(Step("verdict", f"{answer}: {decision.explain or 'no policy of the workload says otherwise'}"))
    if not decision.allowed:
        return "refused", steps
    if facts.http:
        steps += [step for entry in entries if isinstance(entry, RateLimit) for step in _limits(entry)]
    return ("unknown" if custom else "allowed"), steps


def _unparsed(facts: _Facts, entries: tuple[Entry, ...]) -> tuple[Outcome, list[Step]] | None:
    """Return what happens to bytes that are not parsed as HTTP/1, None where policies may judge them as TCP."""
    protocol = facts.server.workload.protocol_at(facts.server.port)
    policies = [each for each in entries if isinstance(each, AuthorizationPolicy | RequestAuthentication | RateLimit)]
    readers = [
        f"{type(each).__name__} {each.namespace}/{each.name}"
        for each in policies
        if _decides_requests(each, facts.trust_domain)
    ]
    if protocol == "tcp" or not readers:
        return None
    refused = (
        f"what is not HTTP/1 is refused (unparsed_http), as {', '.join(readers)} decides by the request: if "
        "it is none, declare the port's protocol"
    )
    if protocol == "http2":
        return "refused", [Step("verdict", f"the port is declared {protocol}, which is not parsed yet: {refused}")]
    return "unknown", [Step("verdict", f"it depends on the request: say METHOD and PATH; {refused}")]


def _decides_requests(entry: AuthorizationPolicy | RequestAuthentication | RateLimit, trust_domain: str) -> bool:
    return not isinstance(entry, AuthorizationPolicy) or CompiledPolicy.of(entry, trust_domain).decides_requests


def _jwt(facts: _Facts, authentications: list[RequestAuthentication]) -> list[Step]:
    steps = []
    for each in authentications:
        issuers = ", ".join(rule.issuer or rule.jwks_uri for rule in each.rules) or "none"
        steps.append(
            Step(
                "jwt",
                f"RequestAuthentication {each.namespace}/{each.name}: a token must be valid for one of: "
                f"{issuers}; no token passes",
            )
        )
    if authentications:
        token = (
            f"taken as a valid one of {facts.claims.principal}"
            if facts.claims
            else "none is assumed: request.auth.* is empty"
        )
        steps.append(Step("jwt", f"the request's token: {token}"))
    return steps


def _limits(limit: RateLimit) -> list[Step]:
    name = f"RateLimit {limit.namespace}/{limit.name}"
    steps = []
    for local in limit.local:
        scope = [*local.methods, *local.paths, *(f"{header}: {value}" for header, value in local.headers)]
        bucket = local.bucket
        which = f" for {', '.join(scope)}" if scope else ""
        each = f", for each {', '.join(local.by)}" if local.by else ""
        steps.append(
            Step(
                "rate limit",
                f"{name}: {bucket.max_tokens} at once, {bucket.tokens_per_fill} every {bucket.fill_seconds:g} "
                f"s{which}{each}",
            )
        )
    if limit.service is not None:
        steps.append(
            Step(
                "rate limit",
                f"{name}: {limit.service.provider} is asked (domain {limit.service.domain}); on failure "
                f"{limit.service.failure_mode}",
            )
        )
    return steps
