"""The plan of the kernel path: which ports are on it and why, which pods may, what is balanced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from nodeagent.mesh.entries import Endpoint, Entry, Protocol, Service, ServicePort, Workload, policies_of
from nodeagent.mesh.kernel_plan import (
    KernelDestination,
    KernelPlan,
    KernelPlanner,
    KernelPlanSettings,
    KernelService,
    KernelVerdict,
    PortPath,
)
from nodeagent.mesh.protection import CLOSED, protection
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import (
    AuthorizationPolicy,
    Condition,
    JwtRule,
    LocalLimit,
    Operation,
    RateLimit,
    RequestAuthentication,
    Rule,
    RuleSource,
    TokenBucket,
)
from nodeagent.vocabulary import Address, PodUid, SpiffeId

SERVER = PodUid("server")
MESH = MeshSettings("cluster.local")
IGNORED = KernelPlanSettings("n", MESH, client_cert=False)
"""Applications read no X-Forwarded-Client-Cert."""
UNTOUCHED = "; X-Forwarded-Client-Cert is neither made nor removed"
FOUR, SIX = ("10.0.0.1", 8080), ("fd00::1", 8080)


def workload(uid: str, number: int, **fields: object) -> Workload:
    base = Workload(
        uid=PodUid(uid),
        pod=uid,
        namespace="ns",
        node="n",
        addresses=(Address(f"10.0.0.{number}"), Address(f"fd00::{number}")),
        service_account=uid,
        identity=SpiffeId(f"spiffe://cluster.local/ns/ns/sa/{uid}"),
        workload=uid,
        app=uid,
        version="",
        canonical_service=uid,
        canonical_revision="",
        ready=True,
        enrolled=True,
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def service(protocol: Protocol = "http", *more: Endpoint, **fields: object) -> Service:
    endpoints = (*(Endpoint(Address(address), port, SERVER) for address, port in (FOUR, SIX)), *more)
    base = Service(
        "svc",
        "ns",
        "svc.ns.svc.cluster.local",
        (Address("10.9.0.1"), Address("fd09::1")),
        (ServicePort(80, "web", protocol, endpoints),),
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def plan(
    *policies: Entry,
    settings: KernelPlanSettings | None = None,
    protocol: Protocol = "http",
    path: object = "",
    of_service: object = None,
    **fields: object,
) -> KernelPlan:
    """The plan for a client and a server pod; *path*: the pod's own setting."""
    if path:
        fields |= {"path": path, "own_path": True}
    server = workload(
        "server",
        1,
        ports=((8080, protocol),),
        services=((8080, "ns/svc"),),
        policies=tuple(each.key for each in policies),
        **fields,
    )
    entries = [server, workload("client", 2), service(protocol, path=of_service), *policies]
    return KernelPlanner(settings or IGNORED).plan(entries, {SERVER, PodUid("client")})


def policy(
    action: str, account: str = "client", methods: tuple[str, ...] = (), **fields: object
) -> AuthorizationPolicy:
    operations = (Operation(methods=methods),) if methods else ()
    rule = Rule((RuleSource(principals=(f"cluster.local/ns/ns/sa/{account}",)),), operations)
    return AuthorizationPolicy("ns", "p", action, (rule,), **fields)  # type: ignore[arg-type]


def port(of: KernelPlan) -> PortPath:
    return of.ports[SERVER, 8080]


def test_without_policy_every_captured_pod_may() -> None:
    made = plan()
    destination = KernelDestination(SERVER, None, http=True)
    assert made.destinations == {FOUR: destination, SIX: destination}
    assert made.services == {
        ("10.9.0.1", 80): KernelService("ns/svc", (FOUR,)),
        ("fd09::1", 80): KernelService("ns/svc", (SIX,)),
    }
    assert port(made) == PortPath("kernel", f"nothing is decided per request{UNTOUCHED}")


def test_verdicts_of_a_deny() -> None:
    made = plan(policy("DENY"))
    assert made.destinations[FOUR].verdicts == {"client": KernelVerdict(False, "ns/p"), "server": KernelVerdict(True)}


def test_verdicts_of_an_allow() -> None:
    made = plan(policy("ALLOW"))
    assert made.destinations[SIX].verdicts == {"client": KernelVerdict(True, "ns/p"), "server": KernelVerdict(False)}


def test_a_policy_that_is_not_there_is_closed() -> None:
    """It selects the server, and could not be carried: neither the kernel nor who asks for an
    explanation takes it for none.
    """
    server = workload("server", 1, ports=((8080, "tcp"),), policies=("authorization/ns/p",))
    made = KernelPlanner(IGNORED).plan([server, workload("client", 2)], {SERVER, PodUid("client")})
    assert made.destinations[FOUR].verdicts == {
        "client": KernelVerdict(False, "authorization ns/p"),
        "server": KernelVerdict(False, "authorization ns/p"),
    }
    assert protection(server, policies_of(server, {}.get), "policy") == CLOSED


def test_a_verdict_by_address_uses_the_family_that_is_dialled() -> None:
    made = plan(AuthorizationPolicy("ns", "p", "ALLOW", (Rule((RuleSource(ip_blocks=("fd00::2/128",)),)),)))
    assert made.destinations[FOUR].verdicts == {"client": KernelVerdict(False), "server": KernelVerdict(False)}
    assert made.destinations[SIX].verdicts == {"client": KernelVerdict(True, "ns/p"), "server": KernelVerdict(False)}


def test_a_pod_without_the_family_has_no_verdict() -> None:
    server = workload("server", 1, ports=((8080, "tcp"),), policies=(policy("ALLOW").key,))
    lonely = workload("client", 2, addresses=(Address("10.0.0.2"),))
    made = KernelPlanner(IGNORED).plan([server, lonely, policy("ALLOW")], {SERVER, lonely.uid})
    assert made.destinations[SIX].verdicts == {"server": KernelVerdict(False)}


PER_REQUEST: dict[str, tuple[Entry, str]] = {
    "methods": (policy("DENY", methods=("POST",)), "an AuthorizationPolicy decides by the request: ns/p"),
    "custom": (policy("CUSTOM", provider="x"), "AuthorizationPolicy ns/p asks an external authorizer"),
    "audit": (policy("AUDIT"), "AuthorizationPolicy ns/p reports what it matches"),
    "dry run": (policy("DENY", dry_run=True), "AuthorizationPolicy ns/p reports what it matches"),
    "jwt": (RequestAuthentication("ns", "r", (JwtRule("issuer"),)), "RequestAuthentication ns/r checks each request"),
    "limit": (RateLimit("ns", "r", (LocalLimit(TokenBucket(1, 1, 1.0)),)), "RateLimit ns/r counts each request"),
}


@pytest.mark.parametrize("setting", ["", "kernel"])
@pytest.mark.parametrize("protocol", ["http", "auto"])
@pytest.mark.parametrize("case", PER_REQUEST)
def test_what_is_decided_per_request_takes_the_proxy(case: str, protocol: Protocol, setting: str) -> None:
    """Whatever is asked for: nothing goes past a decision."""
    entry, why = PER_REQUEST[case]
    made = plan(entry, protocol=protocol, path=setting)
    asked = "nodeagent.io/path of the pod is kernel, but " if setting else ""
    assert port(made) == PortPath("proxy", asked + why)
    assert not made.destinations
    assert not made.services


@pytest.mark.parametrize("case", ["methods", "jwt", "limit"])
def test_on_a_tcp_port_there_are_no_requests(case: str) -> None:
    """Istio: a DENY rule loses its HTTP fields and so matches more; JWT and rate limits have no effect."""
    made = plan(PER_REQUEST[case][0], protocol="tcp")
    verdicts = {"client": KernelVerdict(False, "ns/p"), "server": KernelVerdict(True)} if case == "methods" else None
    assert made.destinations[FOUR] == KernelDestination(SERVER, verdicts)


SETTINGS: dict[str, tuple[Callable[[], KernelPlan], PortPath]] = {
    "observed": (lambda: plan(settings=OBSERVED), PortPath("proxy", "the access log is asked for")),
    "observed, kernel asked for": (
        lambda: plan(settings=OBSERVED, path="kernel"),
        PortPath("kernel", f"nodeagent.io/path of the pod is kernel{UNTOUCHED}"),
    ),
    "pod": (
        lambda: plan(path="proxy", of_service="kernel"),
        PortPath("proxy", "nodeagent.io/path of the pod is proxy"),
    ),
    "pod says auto": (
        lambda: plan(path="auto", of_service="proxy"),
        PortPath("kernel", f"nothing is decided per request{UNTOUCHED}"),
    ),
    "service": (
        lambda: plan(of_service="proxy"),
        PortPath("proxy", "nodeagent.io/path of the Service ns/svc is proxy"),
    ),
    "excluded": (lambda: plan(excluded_ports=(8080,)), PortPath("proxy", "port 8080 is excluded from capture")),
}
OBSERVED = KernelPlanSettings("n", MESH, observed="the access log")


@pytest.mark.parametrize("setting", ["auto", "kernel"])
@pytest.mark.parametrize("protocol", ["http", "auto", "http2", "grpc", "grpc-web", "tcp"])
def test_who_may_read_a_header_about_its_client_gets_none_past_the_proxy_silently(
    protocol: Protocol, setting: str
) -> None:
    """Where HTTP may be, the kernel path would bring a client's own X-Forwarded-Client-Cert: it
    is taken when somebody asks for it, and that is said.
    """
    made = plan(settings=KernelPlanSettings("n", MESH), protocol=protocol, path=setting)
    parsed = protocol != "tcp"
    assert port(made).path == ("proxy" if parsed and setting == "auto" else "kernel")
    assert ("X-Forwarded-Client-Cert" in port(made).why) == parsed
    assert bool(made.destinations) == (port(made).path == "kernel")


@pytest.mark.parametrize("protocol", ["http2", "grpc"])
def test_http2_is_balanced_by_request_unless_the_kernel_path_is_asked_for(protocol: Protocol) -> None:
    """The kernel would balance connections, and a client of gRPC has one."""
    planned = port(plan(protocol=protocol))
    assert planned.path == "proxy"
    assert "balanced and counted one by one" in planned.why
    asked = port(plan(protocol=protocol, path="kernel"))
    assert asked.path == "kernel"
    assert asked.why.endswith("HTTP/2 is balanced by connection there, and counted as TCP")


@pytest.mark.parametrize(("protocol", "counted"), [("http", True), ("grpc-web", True), ("grpc", False), ("tcp", False)])
def test_requests_are_counted_where_http1_is_declared(protocol: Protocol, counted: bool) -> None:
    made = plan(protocol=protocol, path="kernel")
    assert {each.http for each in made.destinations.values()} == {counted}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str) -> None:
    make, expected = SETTINGS[case]
    made = make()
    assert port(made) == expected
    assert bool(made.destinations) == (expected.path == "kernel")


def test_the_namespaces_setting_gives_way_to_the_services() -> None:
    for wider in ("kernel", "proxy"):
        expected = {
            None: PortPath(
                wider, f"nodeagent.io/path of the namespace is {wider}{UNTOUCHED if wider == 'kernel' else ''}"
            ),
            "kernel": PortPath("kernel", f"nodeagent.io/path of the Service ns/svc is kernel{UNTOUCHED}"),
            "proxy": PortPath("proxy", "nodeagent.io/path of the Service ns/svc is proxy"),
            "auto": PortPath("proxy", "the access log is asked for"),
        }
        server = workload("server", 1, ports=((8080, "http"),), services=((8080, "ns/svc"),), path=wider)
        for of_service, path in expected.items():
            assert port(KernelPlanner(OBSERVED).plan([server, service(path=of_service)], {SERVER})) == path


def test_only_captured_pods_take_part() -> None:
    server = workload("server", 1, ports=((8080, "http"),))
    assert KernelPlanner(IGNORED).plan([server, workload("client", 2)], {PodUid("client")}) == KernelPlan()


def test_a_service_is_balanced_over_all_its_endpoints() -> None:
    """Input: one endpoint on this node's kernel path, one on another node. Verdict: both are in the
    set, of the ClusterIP's family.
    """
    remote = Endpoint(Address("10.1.0.1"), 8080, PodUid("remote"))
    server = workload("server", 1, ports=((8080, "http"),), services=((8080, "ns/svc"),))
    made = KernelPlanner(IGNORED).plan([server, service("http", remote)], {SERVER})
    assert made.services["10.9.0.1", 80].endpoints == (FOUR, ("10.1.0.1", 8080))
    assert made.services["fd09::1", 80].endpoints == (SIX,)


def test_plans_again_as_from_scratch() -> None:
    """Input: the same planner sees policies and pods come and go. Verdict: each plan is the one
    that a new planner makes.
    """
    planner = KernelPlanner(IGNORED)
    client, other = workload("client", 2), workload("other", 3)
    for policies in ((policy("DENY"),), (policy("ALLOW"),), (), (policy("DENY", "other"),)):
        for pods in (
            [client],
            [client, other],
            [dataclasses.replace(client, identity=SpiffeId("spiffe://cluster.local/ns/ns/sa/other"))],
        ):
            server = workload("server", 1, ports=((8080, "http"),), policies=tuple(each.key for each in policies))
            entries: list[Entry] = [server, *pods, *policies]
            captured = {entry.uid for entry in entries if isinstance(entry, Workload)}
            assert planner.plan(entries, captured) == KernelPlanner(IGNORED).plan(entries, captured)


def test_established_connections() -> None:
    planner = KernelPlanner(IGNORED)
    server = workload("server", 1, ports=((8080, "http"),))
    client = workload("client", 2)
    assert planner.permits(client, server, FOUR, []) == KernelVerdict(True)
    assert planner.permits(client, server, FOUR, [policy("DENY")]) == KernelVerdict(False, "ns/p")
    assert planner.permits(client, server, FOUR, [policy("DENY", "other", methods=("POST",))]) == KernelVerdict(False)


BY_CLIENT = Rule((RuleSource(remote_ip_blocks=("10.0.0.2",)),))


@pytest.mark.parametrize("rule", [BY_CLIENT, Rule(conditions=(Condition("remote.ip", (), ("10.0.0.2",)),))])
@pytest.mark.parametrize("protocol", ["http", "http2", "grpc", "auto"])
def test_where_requests_tell_the_client_the_proxy_decides(rule: Rule, protocol: Protocol) -> None:
    made = plan(AuthorizationPolicy("ns", "p", "DENY", (rule,)), protocol=protocol, path="kernel")
    assert port(made).path == "proxy"
    assert "an AuthorizationPolicy decides by the request: ns/p" in port(made).why
    assert made.destinations == {}


def test_where_no_requests_are_the_client_is_the_pod() -> None:
    made = plan(AuthorizationPolicy("ns", "p", "DENY", (BY_CLIENT,)), protocol="tcp")
    assert made.destinations[FOUR].verdicts == {"client": KernelVerdict(False, "ns/p"), "server": KernelVerdict(True)}


@pytest.mark.parametrize("values", [{"values": ("*",)}, {"not_values": ("outbound_.*",)}])
@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_which_service_was_asked_for_the_kernel_does_not_tell(values: dict[str, object], protocol: Protocol) -> None:
    """A pod's port may be several Services', and none's where it is dialled by its address."""
    rule = Rule(conditions=(Condition("connection.sni", **values),))  # type: ignore[arg-type]
    made = plan(AuthorizationPolicy("ns", "p", "DENY", (rule,)), protocol=protocol, path="kernel")
    assert port(made).path == "proxy"
    assert "AuthorizationPolicy ns/p decides by connection.sni" in port(made).why
    assert made.destinations == {}
