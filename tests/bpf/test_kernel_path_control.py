"""control/kernel_path.py on real pods: what it tells of connections, counts and closes equals what
the applications did.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from nodeagent.control.kernel_path import KernelPaths
from nodeagent.mesh.entries import Endpoint, Entry, Service, ServicePort, Workload
from nodeagent.mesh.kernel_plan import KernelPlanSettings
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule, RuleSource
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Address, PodUid, SpiffeId
from tests.bpf.conftest import Node
from tests.bpf.test_kernel_path import KINDS, _answer, _any, _exchange, _until_closed, _until_reset, _vip
from tests.bpf.world import Pod, connected, dial, serve
from tests.waiting import eventually

PORT = 8400
EMPTY = (
    "destinations",
    "verdicts",
    "services",
    "backends",
    "flow_totals",
    "closed_flows",
    "bypass_streams",
    "by_cookie",
)
"""Maps that hold nothing once both pods are gone."""


def workload(uid: str, pod: Pod, **fields: object) -> Workload:
    return Workload(
        uid=PodUid(uid),
        pod=f"pod-{uid}",
        namespace="ns",
        node="node",
        addresses=tuple(map(Address, pod.addresses)),
        service_account=uid,
        identity=SpiffeId(f"spiffe://cluster.local/ns/ns/sa/{uid}"),
        workload=f"app-{uid}",
        app=uid,
        version="v1",
        canonical_service=uid,
        canonical_revision="v1",
        ready=True,
        enrolled=True,
        **fields,
    )  # type: ignore[arg-type]


def deny(*accounts: str, methods: tuple[str, ...] = ()) -> AuthorizationPolicy:
    sources = (RuleSource(principals=tuple(f"cluster.local/ns/ns/sa/{account}" for account in accounts)),)
    return AuthorizationPolicy("ns", "deny", "DENY", (Rule(sources, (Operation(methods=methods),) if methods else ()),))


class World:
    def __init__(self, node: Node, a: Pod, b: Pod) -> None:
        self.node, self.a, self.b = node, a, b
        node.enroll(a, "a")
        node.enroll(b, "b")
        self.store = Store()
        self.paths = KernelPaths(
            node.plane, KernelPlanSettings("node", MeshSettings("cluster.local"), client_cert=False), "Kubernetes"
        )

    def update(self, *policies: AuthorizationPolicy, protocol: str = "tcp", bypass: bool = False) -> None:
        keys = tuple(policy.key for policy in policies)
        server = workload(
            "b", self.b, ports=((PORT, protocol),), services=((PORT, "ns/svc"),), policies=keys, bypass=bypass
        )
        endpoints = tuple(Endpoint(address, PORT, PodUid("b")) for address in server.addresses)
        vips = Address(_vip("4")), Address(_vip("6"))
        service = Service("svc", "ns", "svc.ns.svc.cluster.local", vips, (ServicePort(80, "x", protocol, endpoints),))  # type: ignore[arg-type]
        entries: list[Entry] = [workload("a", self.a), server, service, *policies]
        self.paths.update(entries)

    def counted(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Istio's TCP counters by reporter, security policy and response flags."""
        self.paths.collect(self.store)
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for line in b"".join(self.store.exposition()).decode().splitlines():
            if line.startswith("istio_tcp_"):
                name, _, rest = line.partition("{")
                labels = dict(part.split("=") for part in rest.partition("}")[0].split(","))
                assert labels["source_workload"] == '"app-a"'
                assert labels["destination_service"] == '"svc.ns.svc.cluster.local"'
                key = tuple(
                    labels[label].strip('"') for label in ("reporter", "connection_security_policy", "response_flags")
                )
                found.setdefault(key, {})[name] = float(rest.rpartition(" ")[2])  # type: ignore[arg-type]
        return found

    def events(self) -> dict[tuple[str, ...], float]:
        self.paths.collect(self.store)
        return dict(self.store._plain["nodeagent_policy_events_total"])


@pytest.fixture
def world(node: Node, a: Pod, b: Pod) -> Iterator[World]:
    made = World(node, a, b)
    yield made
    node.stage.stop()
    eventually(lambda: node.plane.statistics().maps["kernel_flows"][0] == 0)
    for uid in ("a", "b"):
        node.plane.release(uid)
    made.paths.update([])
    made.paths.collect(Store())
    assert {name: node.plane.statistics().maps[name][0] for name in EMPTY} == dict.fromkeys(EMPTY, 0)


def tcp(opened: int, closed: int, sent: int, received: int) -> dict[str, float]:
    names = ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
    return {
        f"istio_tcp_{name}_total": value for name, value in zip(names, (opened, closed, sent, received), strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bypass", [False, True])
def test_counted_while_it_lives_and_when_it_ends(world: World, kind: str, bypass: bool) -> None:
    world.node.enroll(world.a, "a", bypass=bypass)
    world.node.enroll(world.b, "b", bypass=bypass)
    world.update(bypass=bypass)
    world.node.stage.start(world.b, _answer, _any(kind), PORT).receive()
    child = world.node.stage.start(world.a, _exchange, _vip(kind), 80, "client")
    assert child.receive() == "connected"
    child.send(1000)
    assert child.receive() == "done"
    live = {("source", "unknown", "-"): tcp(1, 0, 6, 1000), ("destination", "kernel_attested", "-"): tcp(1, 0, 6, 1000)}
    assert world.counted() == live
    assert world.counted() == live
    assert any(stream.way == "socket" for stream in world.node.plane.bypassed().values()) == bypass
    (row,) = world.paths.flows(world.store)
    assert (row["source"], row["destination"], row["service"]) == (
        "ns/pod-a",
        f"ns/pod-b:{PORT}",
        "svc.ns.svc.cluster.local",
    )
    assert (row["path"], row["why"], row["sent"], row["received"]) == (
        "kernel",
        "nothing is decided per request",
        6,
        1000,
    )
    child.send(0)
    child.receive()
    ended = {key: tcp(1, 1, 6, 1000) for key in live}
    eventually(lambda: world.counted() == ended)
    # it is in the record when the server's end has closed too
    eventually(lambda: len(world.paths.flows(world.store)) == 1)
    (past,) = world.paths.flows(world.store)
    assert past == {**row, "closed": past["closed"]}
    assert row["opened"] < past["closed"] < time.time() + 1


def test_refusals_count_by_policy(world: World) -> None:
    world.node.stage.start(world.b, serve, "0.0.0.0", PORT).receive()
    world.update(deny("a"))
    with pytest.raises(ConnectionRefusedError):
        world.node.stage.run(world.a, dial, world.b.ipv4, PORT)
    assert world.events() == {("ns/app-b", "ns/deny", "deny"): 1}
    assert world.counted()["destination", "kernel_attested", "-"] == tcp(1, 1, 0, 0)
    (row,) = world.paths.flows(world.store)
    told = {
        "source": "ns/pod-a",
        "destination": f"ns/pod-b:{PORT}",
        "service": "",
        "verdict": "deny",
        "policy": "ns/deny",
        "times": 1,
    }
    assert told.items() <= row.items()
    with pytest.raises(ConnectionRefusedError):
        world.node.stage.run(world.a, dial, _vip("4"), 80)
    by_name = {row["service"]: row["times"] for row in world.paths.flows(world.store)}
    assert by_name == {"": 1, "svc.ns.svc.cluster.local": 1}


def _request(_pipe: Connection, address: str, port: int, count: int) -> bytes:
    with connected(address, port) as connection:
        for _ in range(count):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(1 << 16)
    return answer


def _serve_http(pipe: Connection, address: str, port: int) -> None:
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        pipe.send("ready")
        while True:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(1 << 16):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("kind", KINDS)
def test_http_is_counted(world: World, kind: str) -> None:
    """Input: requests over a ClusterIP to an HTTP port. Verdict: Istio's HTTP metrics with the
    pods' labels; the program goes when no port needs it.
    """
    world.update(protocol="http")
    assert world.node.plane.http.enabled
    world.node.stage.start(world.b, _serve_http, _any(kind), PORT).receive()
    world.node.stage.run(world.a, _request, _vip(kind), 80, 3)
    eventually(lambda: world.counted()["destination", "kernel_attested", "-"] == tcp(1, 1, 3 * 38, 3 * 27))
    lines = [
        line
        for line in b"".join(world.store.exposition()).decode().splitlines()
        if line.startswith("istio_requests_total{")
    ]
    assert len(lines) == 2
    for line in lines:
        assert line.endswith((" 3", " 3.0"))
        for label in (
            'response_code="200"',
            'source_workload="app-a"',
            'destination_workload="app-b"',
            'destination_service_name="svc"',
        ):
            assert label in line
    world.update(protocol="tcp")
    assert not world.node.plane.http.enabled


@pytest.mark.parametrize("change", ["denied", "per request"])
def test_established_connections_are_closed(world: World, change: str) -> None:
    """Input: a policy that refuses the client, or that decides by the request. Verdict: its
    connection ends, with a reset for the server.
    """
    world.update(deny("somebody"), protocol="http")
    server = world.node.stage.start(world.b, _until_reset, "0.0.0.0", PORT)
    server.receive()
    client = world.node.stage.start(world.a, _until_closed, world.b.ipv4, PORT)
    assert client.receive() == "connected"
    assert world.paths.close_refused(world.store) == 0
    world.update(deny("a") if change == "denied" else deny("somebody", methods=("POST",)), protocol="http")
    assert world.paths.close_refused(world.store) == 1
    assert (client.receive(), server.receive()) == (errno.ECONNABORTED, errno.ECONNRESET)
    assert world.events() == {("ns/app-b", "ns/deny" if change == "denied" else "", "closed"): 1}
    eventually(lambda: [bool(row["closed"]) for row in world.paths.flows(world.store)] == [True])
    (row,) = world.paths.flows(world.store)
    assert (row["verdict"], row["reason"], row["policy"]) == (
        "deny",
        "policy_denied",
        "ns/deny" if change == "denied" else "",
    )
    assert world.paths.flows(world.store) == [row]


def test_why(world: World) -> None:
    world.update(deny("somebody", methods=("POST",)), protocol="http")
    assert world.paths.paths(PodUid("b")) == {PORT: "proxy: an AuthorizationPolicy decides by the request: ns/deny"}
    world.update()
    a, b = workload("a", world.a), workload("b", world.b)
    assert world.paths.explain(a, b, PORT) == "kernel: nothing is decided per request"
    assert world.paths.explain(a, b, 1) == "proxy: no Service targets the port"
    assert world.paths.explain(None, b, PORT) == "proxy: the client is not a captured pod of this node"


def test_a_pod_that_is_gone_is_counted_a_last_time(world: World) -> None:
    world.node.stage.start(world.b, serve, "0.0.0.0", PORT).receive()
    world.update()
    assert world.node.stage.run(world.a, dial, world.b.ipv4, PORT).data
    eventually(lambda: world.node.plane.statistics().maps["kernel_flows"][0] == 0)
    world.node.plane.release("a")
    world.update()
    assert world.counted()["destination", "kernel_attested", "-"]["istio_tcp_connections_closed_total"] == 1
    assert world.node.plane.statistics().maps["flow_totals"][0] == 0
