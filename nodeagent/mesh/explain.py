"""What would happen to a connection or request, step by step and in words: what ``nodeagent
explain`` prints. Pure.

The steps are in the order in which the proxy takes them, and decided by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nodeagent.config import DeliverySetting
from nodeagent.errors import ConfigError
from nodeagent.istio import AMBIENT_REDIRECTION, TUNNEL, TUNNEL_PORT, outbound_name
from nodeagent.mesh.declared import HEALTH_CHECK, health_among, is_among, open_at
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import (
    UNREAD,
    DeclaredProbe,
    Entry,
    Service,
    ServicePort,
    Workload,
    by_age,
    policies_of,
    takes_mtls,
)
from nodeagent.mesh.explain_policies import ClientSide, Facts, Outcome, Question, ServerSide, Step, judged
from nodeagent.policy.claims import Claims
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import MtlsMode
from nodeagent.vocabulary import host_port

PathInWords = Callable[[Workload | None, Workload, int], str]
"""Says in words which path a connection of a client to a workload's port takes, and why."""
_SCHEME: Final = "spiffe://"
_DIALS: Final = {"network": "over the pods' interfaces", "inside": "within the server's pod"}
_CLUSTER: Final = ".svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Explanation:
    steps: tuple[Step, ...]
    verdict: Outcome

    def to_json(self) -> dict[str, object]:
        return {"verdict": self.verdict, "steps": [{"stage": step.stage, "words": step.words} for step in self.steps]}


def explain(
    entries: Iterable[Entry],
    question: Question,
    *,
    node: str,
    mesh: MeshSettings,
    setting: DeliverySetting = "auto",
    kernel_path: PathInWords | None = None,
    claims: Claims | None = None,
    hbone: bool = False,
    node_addresses: Collection[str] = (),
) -> Explanation:
    """Return what happens to *question* by *entries*, the snapshot of *node* in *mesh*, which is known by
    *node_addresses*; *claims* are those of the request's token, were it verified. *setting* is
    ``redirect.delivery`` of agent.yaml, *hbone* ``proxy.hbone``.

    Raises ConfigError when the source or the destination is not known.
    """
    known = list(entries)
    client = _client(known, question.source)
    server, steps = _server(known, question.destination)
    if not isinstance(server, ServerSide):
        return Explanation(tuple(steps), server)
    principal, words, refused = _mtls(client, server, hbone=hbone)
    steps.append(Step("mtls", words))
    workload = server.workload
    if not principal and workload.enrolled and server.port not in workload.excluded_ports:
        probes = open_at(workload, server.port, from_node=client.address in node_addresses)
        if (spared := _spared(probes, question, only=refused)) is not None:
            return Explanation((*steps, spared[1]), spared[0])
    if refused:
        return Explanation(tuple(steps), "refused")
    steps.append(Step("path", kernel_path(client.workload, workload, server.port) if kernel_path else _path(workload)))
    if _is_tunnelled(client, workload, hbone=hbone):
        steps.append(Step("policy", "the proxy of its own mesh decides, by what that knows of policies"))
        return Explanation(tuple(steps), "unknown")
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
    by_key = {entry.key: entry for entry in known}.get
    facts = Facts(client, server, question, principal, mesh, claims, by_key)
    verdict, more = judged(facts, policies_of(workload, by_key))
    return Explanation((*steps, *more), verdict)


# -- who and where --


def _client(entries: list[Entry], text: str) -> ClientSide:
    if text == "-":
        return ClientSide(None, "", "")
    if text.startswith(_SCHEME):
        return ClientSide(None, text.removeprefix(_SCHEME), "")
    found = _workload(entries, text)
    if found is None:
        if _is_address(text):
            return ClientSide(None, "", text)
        raise ConfigError(
            f"SRC: {text!r:.120}: no such pod: [NAMESPACE/]POD, an address, a SPIFFE ID, or - for a client "
            "without identity"
        )
    return ClientSide(found, found.identity.removeprefix(_SCHEME), next(iter(found.addresses), ""))


def _server(entries: list[Entry], text: str) -> tuple[ServerSide | Outcome, list[Step]]:
    """Return what serves the destination *text* and the step of finding it; where no pod does, the verdict."""
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
        return ServerSide(workload, number, workload.protocol_at(number), None), [Step("route", words)]
    chosen = _service_port(service, port, text)
    workloads = {entry.uid: entry for entry in entries if isinstance(entry, Workload)}
    serving = [(endpoint, workloads[endpoint.uid]) for endpoint in chosen.endpoints if endpoint.uid in workloads]
    where = f"Service {service.host} port {chosen.port} ({chosen.protocol})"
    outside = ", ".join(host_port(each.address, each.port) for each in chosen.endpoints if not each.uid)
    if outside and not serving:
        return "allowed", [Step("route", f"{where} is served outside the mesh, by {outside}: passed through as it is")]
    if not serving:
        return "refused", [Step("route", f"{where} has no ready endpoint: 503, flag UH")]
    endpoint, first = serving[0]
    pods = ", ".join(dict.fromkeys(f"{workload.namespace}/{workload.pod}" for _, workload in serving))
    name = outbound_name(service.host, chosen.port) if takes_mtls(first, endpoint.port) else ""
    return ServerSide(first, endpoint.port, chosen.protocol, service, name), [
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
    services = reversed(by_age(entry for entry in entries if isinstance(entry, Service)))
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


def _is_tunnelled(client: ClientSide, workload: Workload, *, hbone: bool) -> bool:
    """Say whether what *client* sends to *workload* is brought to an ambient mesh by HBONE."""
    return hbone and workload.ambient and client.workload is not None and client.workload.enrolled


def _mtls(client: ClientSide, server: ServerSide, *, hbone: bool) -> tuple[str, str, bool]:
    """Return the principal that the server's side knows, the step in words, and whether the connection is refused."""
    workload = server.workload
    port = server.port
    mode: MtlsMode = workload.mtls_at(port)
    source = f"PeerAuthentication {workload.mtls_from}" if workload.mtls_from else "mtls.mode of agent.yaml"
    said = f"{mode} (by {source}{', portLevelMtls' if port in dict(workload.port_mtls) else ''})"
    if _is_tunnelled(client, workload, hbone=hbone):
        words = (
            f"HBONE: the pod is an ambient mesh's ({AMBIENT_REDIRECTION}: enabled, or {TUNNEL}: http), so it gets "
            f"streams of mTLS at its port {TUNNEL_PORT}; the client's certificate proves {client.principal}"
        )
        return client.principal, words, False
    proxied = workload.enrolled or workload.sidecar
    if not proxied or port in workload.excluded_ports:
        why = f"excludeInboundPorts names port {port}" if proxied else "the pod is not enrolled and has no sidecar"
        if workload.ambient and not hbone:
            why += " (it takes HBONE, which proxy.hbone is for)"
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
    if hbone and client.workload is not None and client.workload.ambient and workload.hbone and client.principal:
        return client.principal, f"{said}: HBONE; the client's certificate proves {client.principal}", False
    if mode == "DISABLE":
        return "", f"{said}: plaintext between nodes; the client's identity is not known to the server", False
    if capable and client.principal:
        return client.principal, f"{said}: mTLS; the client's certificate proves {client.principal}", False
    if mode == "STRICT":
        return (
            "",
            (
                f"{said}: the client cannot prove an identity: refused (only probes that the pod declares pass, from "
                "its node, and GET of metrics that it declares)"
            ),
            True,
        )
    presumed = (
        f": no ALLOW is for it; DENY and CUSTOM take it for {client.principal}, by its address"
        if client.principal
        else ""
    )
    return "", f"{said}: plaintext is taken; the client's identity is not known{presumed}", False


def _spared(probes: Sequence[DeclaredProbe], question: Question, *, only: bool) -> tuple[Outcome, Step] | None:
    """Return what becomes of *question* where the pod declares *probes* that this client may ask; None: they do
    not decide. *only*: nothing else passes.
    """
    if is_among(probes, question.method.encode(), question.path.encode()):
        words = f"the pod declares GET {question.path} at this port, which no mode and no policy refuses"
        return "allowed", Step("verdict", f"allowed: {words}")
    if services := health_among(probes, question.method, question.path):
        asked = ", ".join(service or "the server as a whole" for service in services)
        words = "the pod declares a gRPC probe at this port, which no mode and no policy refuses, for the health of"
        return "allowed", Step("verdict", f"allowed: {words} {asked}; any other service's is refused")
    if not (only and probes):
        return None
    declared = ", ".join(dict.fromkeys(map(_declared, probes)))
    if not question.method:
        return "unknown", Step("verdict", f"it depends on the request: nothing passes but what is declared: {declared}")
    return "refused", Step("verdict", f"refused (probe_refused): nothing passes but what is declared: {declared}")


def _declared(probe: DeclaredProbe) -> str:
    if probe.kind == "grpc":
        return f"POST {HEALTH_CHECK} for {probe.path or 'the server as a whole'}"
    return f"{probe.kind} {probe.path}".strip()


def _path(workload: Workload) -> str:
    return f"nodeagent.io/path is {workload.path}" if workload.path != "auto" else "nodeagent.io/path is not set: auto"
