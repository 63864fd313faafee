"""The kernel path: connections between two pods of the node that never meet the proxy, and those that must."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path as File

import pytest

from nodeagent.mesh.kernel_plan import ALLOWED, KernelDestination, KernelPlan, KernelService, KernelVerdict
from nodeagent.redirect import kernel_maps, layout, netns, syscall
from nodeagent.redirect.kernel_record import CountedPair, Total
from nodeagent.vocabulary import PodUid
from tests.apps.forged import syn
from tests.bpf.conftest import Node
from tests.bpf.world import Pod, Seen, accept, connected, dial, dial_by_ring, ip, serve
from tests.waiting import eventually

KINDS = ["4", "6", "mapped"]
Counted = Callable[[], dict[str, int]]
A, B = PodUid("a"), PodUid("b")
DENIED = KernelVerdict(False, "ns/deny")


def _family(kind: str) -> int:
    return 6 if kind == "6" else 4


def _any(kind: str) -> str:
    return "::" if kind == "6" else "0.0.0.0"


def _vip(kind: str) -> str:
    return {"4": "10.99.0.1", "6": "fd99::1", "mapped": "::ffff:10.99.0.1"}[kind]


class Path:
    """Two enrolled pods, *a* the client and *b* the server, and the plan that is in force."""

    def __init__(self, node: Node, a: Pod, b: Pod) -> None:
        self.node, self.a, self.b = node, a, b
        self.client, self.server = node.enroll(a, A, protected=True), node.enroll(b, B, protected=True)
        self.plan = KernelPlan()
        self._before = node.plane.kernel.counts.totals()

    def put(self, verdict: KernelVerdict | None, port: int, vip: int = 0, **flags: bool) -> None:
        """Decide connections to *port* of b so (None: any pod may), and balance the ClusterIP's port *vip* over it."""
        self.node.enroll(self.a, A, protected=True, bypass=flags.get("bypass", False))
        verdicts = None if verdict is None else {A: verdict}
        destinations = {(address, port): KernelDestination(B, verdicts, **flags) for address in self.b.addresses}
        services = {}
        if vip:
            services = {
                (_vip(kind), vip): KernelService("ns/svc", ((self.b.address(kind), port),)) for kind in ("4", "6")
            }
        self.apply(KernelPlan(destinations, services))

    def apply(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.node.plane.kernel.sync(plan, self.node.plane.numbers())
        assert self.node.plane.kernel.left_out == {}
        assert list(self.node.plane.kernel.faults()) == []

    def dial(self, kind: str, port: int) -> Seen:
        return self.node.stage.run(self.a, dial, self.b.address(kind), port)

    def pair(self, port: int, service: str = "") -> CountedPair:
        numbers = self.node.plane.numbers()
        return CountedPair(numbers[A], numbers[B], port, service)

    def total(self, port: int, service: str = "") -> Total:
        """What was counted since the test began."""
        pair = self.pair(port, service)
        now, then = (totals.get(pair, Total()) for totals in (self.node.plane.kernel.counts.totals(), self._before))
        return Total(
            now.opened - then.opened,
            now.closed - then.closed,
            now.failed - then.failed,
            now.received - then.received,
            now.sent - then.sent,
        )

    def serve(self, kind: str, port: int) -> None:
        self.node.stage.start(self.b, serve, _any(kind), port).receive()


@pytest.fixture
def path(node: Node, a: Pod, b: Pod) -> Iterator[Path]:
    made = Path(node, a, b)
    yield made
    node.stage.stop()
    made.apply(KernelPlan())


@pytest.mark.parametrize("kind", KINDS)
def test_any_pod_may(path: Path, counted: Counted, kind: str) -> None:
    """Input: a destination that every captured pod may reach. Verdict: app to app, real names,
    counted; nothing stays behind.
    """
    path.serve(kind, 8300)
    path.put(None, 8300)
    seen = path.dial(kind, 8300)
    assert seen.peer == (path.b.address(kind), 8300)
    assert seen.name[0] == path.a.address(kind)
    assert seen.data.startswith(b"app ")
    assert counted() == {"outbound_kernel": 1, "inbound_kernel": 1}
    eventually(lambda: path.total(8300).closed == 1)
    eventually(lambda: path.node.plane.statistics().maps["kernel_flows"][0] == 0)
    assert path.total(8300) == Total(opened=1, closed=1, received=0, sent=len(seen.data))
    assert path.node.plane.statistics().maps["by_cookie"][0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_allowed_and_refused_by_source(path: Path, counted: Counted, kind: str) -> None:
    """Input: a verdict for the pair of pods. Verdict: it is followed; refused connects are told so
    and counted by policy.
    """
    path.serve(kind, 8301)
    path.put(ALLOWED, 8301)
    assert path.dial(kind, 8301).data.startswith(b"app ")
    path.put(DENIED, 8301)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            path.dial(kind, 8301)
    assert counted() == {"outbound_kernel": 1, "inbound_kernel": 1, "outbound_kernel_refused": 2}
    refusals = path.node.plane.kernel.counts.refusals()
    assert [(each.pair, each.policy, each.count) for each in refusals] == [(path.pair(8301), "ns/deny", 2)]
    assert path.node.plane.kernel.counts.refusals() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_told_with_the_service_that_was_dialled(path: Path, kind: str) -> None:
    """Input: refused connects to a ClusterIP and to the pod itself. Verdict: each counts for what
    was dialled, by the policy that refused it.
    """
    began = time.time()
    path.put(DENIED, 8310, vip=80)
    for address, port, times in ((_vip(kind), 80, 3), (path.b.address(kind), 8310, 1)):
        for _ in range(times):
            with pytest.raises(ConnectionRefusedError):
                path.node.stage.run(path.a, dial, address, port)
    path.put(
        KernelVerdict(False, "ns/other"), 8310, vip=80
    )  # what was refused before this counts for the policy of before
    with pytest.raises(ConnectionRefusedError):
        path.node.stage.run(path.a, dial, _vip(kind), 80)
    refusals = path.node.plane.kernel.counts.refusals()
    assert {(each.pair.service, each.policy, each.count) for each in refusals} == {
        ("ns/svc", "ns/deny", 3),
        ("", "ns/deny", 1),
        ("ns/svc", "ns/other", 1),
    }
    assert all(began - 1 < each.last < time.time() + 1 for each in refusals)


def test_the_last_connections_of_a_pod_are_remembered(path: Path) -> None:
    """Input: more connections than a pod has places, through a ClusterIP. Verdict: the last of
    them, with whom, Service, times and bytes.
    """
    path.serve("4", 8311)
    path.put(None, 8311, vip=81)
    began = time.time()
    for _ in range(layout.CLOSED_FLOWS + 5):
        seen = path.node.stage.run(path.a, dial, _vip("4"), 81)
    eventually(lambda: path.total(8311, "ns/svc").sent == (layout.CLOSED_FLOWS + 5) * len(seen.data))
    ended = [one for one in path.node.plane.kernel.record.ended() if one.flow.id.destination[1] == 8311]
    assert len(ended) == layout.CLOSED_FLOWS
    assert {(one.flow.source, one.flow.destination, one.flow.service) for one in ended} == {
        (*path.pair(8311)[:2], "ns/svc")
    }
    assert {(one.received, one.sent) for one in ended} == {(0, len(seen.data))}
    assert all(began - 1 < one.flow.opened <= one.closed < time.time() + 1 for one in ended)
    assert ended == [one for one in path.node.plane.kernel.record.ended() if one in ended], (
        "what is told of the past does not change"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_verdict_the_proxy_decides(path: Path, counted: Counted, kind: str) -> None:
    path.apply(KernelPlan({(path.b.address("6" if kind == "6" else "4"), 8302): KernelDestination(B, {})}))
    child = path.node.stage.start(path.a, dial, path.b.address(kind), 8302)
    with accept(path.client.fds["outbound", _family(kind), 0]) as connection:
        connection.sendall(b"proxy")
        assert child.receive().data == b"proxy"
    assert counted() == {"outbound_captured": 1}


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_confirms_is_not_used_for_ever(path: Path, counted: Counted, kind: str, lives: bool) -> None:
    """Input: the kernel path's last confirmation is older than its timeout. Verdict: connections go
    to the proxy, and without a daemon the way of each pod's protection, at the client's end and at
    the server's.
    """
    node = path.node
    path.serve(kind, 8303)
    path.put(None, 8303, vip=83)
    assert path.dial(kind, 8303).data.startswith(b"app ")
    if not lives:
        node.plane.stop_beating()
    # a daemon that has just gone is not missed yet
    assert node.stage.run(path.a, dial, _vip(kind), 83).data.startswith(b"app ")
    _age(node, seconds=91)
    if lives:
        child = node.stage.start(path.a, dial, _vip(kind), 83)
        with accept(path.client.fds["outbound", _family(kind), 0]) as connection:
            connection.sendall(b"proxy")
            assert child.receive().data == b"proxy"
        assert counted() == {"outbound_kernel": 2, "inbound_kernel": 2, "outbound_captured": 1}
        return
    with pytest.raises(PermissionError):
        path.dial(kind, 8303)
    node.enroll(path.a, A)
    with pytest.raises(ConnectionRefusedError):
        path.dial(kind, 8303)
    node.enroll(path.b, B)
    assert path.dial(kind, 8303).data.startswith(b"app ")
    assert counted() == {
        "outbound_kernel": 2,
        "inbound_kernel": 2,
        "outbound_dead_refused": 1,
        "inbound_dead_refused": 1,
        "outbound_dead_passed": 2,
        "inbound_dead_passed": 1,
    }


def _age(node: Node, seconds: float) -> None:
    """Let the kernel path's last confirmation be *seconds* old."""
    then = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(seconds * 1e9)
    syscall.map_update(
        node.plane._maps["heartbeat"].fd, struct.pack("=I", layout.PULSE_KERNEL_PATH), struct.pack("=Q", then)
    )


def _exchange(pipe: Connection, address: str, port: int, first: str) -> tuple[int, int]:
    """Send what the test asks for, read what comes; *first*: who closes first. Return bytes sent and received."""
    with connected(address, port) as connection:
        sent = received = 0
        pipe.send("connected")
        while size := pipe.recv():
            connection.sendall(b"x" * size)
            sent += size
            received += len(connection.recv(1 << 16))
            pipe.send("done")
        if first == "server":
            connection.sendall(b"bye")
            sent += 3
            while data := connection.recv(1 << 16):
                received += len(data)
        elif first == "abort":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return sent, received


def _answer(pipe: Connection, address: str, port: int) -> None:
    """Answer each piece by "answer", and b"bye" by closing."""
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        pipe.send("ready")
        while True:
            connection, _ = listener.accept()
            with connection:
                while (data := connection.recv(1 << 20)) and not data.endswith(b"bye"):
                    connection.sendall(b"answer")
                if data:
                    connection.sendall(b"last words")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["client", "server", "abort"])
def test_bytes_are_exact(path: Path, kind: str, first: str) -> None:
    """Input: connections that end in each way. Verdict: every byte of data is counted, while they
    live and afterwards, and no other.
    """
    path.node.stage.start(path.b, _answer, _any(kind), 8303).receive()
    path.put(None, 8303)
    child = path.node.stage.start(path.a, _exchange, path.b.address(kind), 8303, first)
    assert child.receive() == "connected"
    for size in (1, 1000):
        child.send(size)
        assert child.receive() == "done"
    (flow,) = path.node.plane.kernel.record.flows()
    assert (flow.source, flow.destination) == path.pair(8303)[:2]
    carried = path.node.plane.carried(flow.source)[flow.id]
    assert (carried.sent, carried.received) == (1001, 12)
    assert path.total(8303) == Total(opened=1)
    child.send(0)
    sent, received = child.receive()
    eventually(lambda: path.node.plane.statistics().maps["kernel_flows"][0] == 0)
    assert path.total(8303) == Total(opened=1, closed=1, received=sent, sent=received)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_listens(path: Path, kind: str) -> None:
    path.put(None, 8304)
    with pytest.raises(ConnectionRefusedError):
        path.dial(kind, 8304)
    assert path.total(8304) == Total(failed=1)
    assert path.node.plane.statistics().maps["kernel_flows"][0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_is_dead(path: Path, kind: str, counted: Counted) -> None:
    """Input: STRICT pods, and no daemon. Verdict: kernel-path connections go on being allowed and
    refused; others are refused.
    """
    for port in (8305, 8306, 8307):
        path.serve(kind, port)
    plans = {
        (address, port): KernelDestination(B, {A: verdict})
        for address in path.b.addresses
        for port, verdict in ((8305, ALLOWED), (8306, DENIED))
    }
    path.apply(KernelPlan(plans))
    path.node.plane.stop_beating()
    assert path.dial(kind, 8305).data.startswith(b"app ")
    with pytest.raises(ConnectionRefusedError):
        path.dial(kind, 8306)
    with pytest.raises(PermissionError):
        path.dial(kind, 8307)
    assert counted() == {
        "outbound_kernel": 1,
        "inbound_kernel": 1,
        "outbound_kernel_refused": 1,
        "outbound_dead_refused": 1,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_clusterip(path: Path, kind: str) -> None:
    """Input: a ClusterIP with one endpoint, on the kernel path. Verdict: its app answers, and the
    client sees the ClusterIP.
    """
    path.serve(kind, 8308)
    path.put(ALLOWED, 8308, vip=80)
    seen = path.node.stage.run(path.a, dial, _vip(kind), 80)
    assert seen.peer == (_vip(kind), 80)
    assert seen.name[0] == path.a.address(kind)
    assert seen.data == f"app {path.b.address('6' if kind == '6' else '4')}".encode()
    eventually(lambda: path.total(8308, "ns/svc").closed == 1)


def _dial_often(_pipe: Connection, address: str, port: int, count: int) -> list[bytes]:
    return [dial(_pipe, address, port).data for _ in range(count)]


@pytest.mark.parametrize("kind", ["4", "6"])
def test_clusterip_is_balanced_whatever_the_path(path: Path, counted: Counted, kind: str) -> None:
    """Input: a ClusterIP with an endpoint on the kernel path and one of another node. Verdict: both
    get their share; the proxy is told the choice.
    """
    path.serve(kind, 8309)
    local, remote = (path.b.address(kind), 8309), ({"4": "10.88.0.9", "6": "fd88::9"}[kind], 8309)
    path.apply(
        KernelPlan({local: KernelDestination(B, None)}, {(_vip(kind), 80): KernelService("ns/svc", (local, remote))})
    )
    child = path.node.stage.start(path.a, _dial_often, _vip(kind), 80, 40)
    chosen = 0
    listener = path.client.fds["outbound", _family(kind), 0]
    listener.settimeout(1)
    while not child.pipe.poll():
        try:
            connection, peer = listener.accept()
        except TimeoutError:
            continue
        with connection:
            found = path.node.destinations.take(path.node.plane._enrolled["a"].pod.netns.cookie, *peer[:2])
            assert found == (_vip(kind), 80, remote)
            chosen += 1
            connection.sendall(b"proxy")
    answers = child.receive()
    assert answers.count(b"proxy") == chosen == counted()["outbound_captured"]
    assert 5 < chosen < 35
    assert counted()["outbound_kernel"] == 40 - chosen


def test_stale_verdicts_are_never_honoured(path: Path, counted: Counted) -> None:
    """Input: a verdict of an older generation is in the map, by any mistake. Verdict: nobody finds it."""
    path.serve("4", 8310)
    path.put(ALLOWED, 8310)
    verdicts = path.node.plane._maps["verdicts"]
    stale = verdicts.items()
    path.put(DENIED, 8310)
    for key, value in stale:
        verdicts.put(key, value)
    with pytest.raises(ConnectionRefusedError):
        path.dial("4", 8310)
    path.node.plane.repair_node()
    assert {key for key, _ in verdicts.items()}.isdisjoint({key for key, _ in stale})


@pytest.mark.parametrize("change", ["denied", "undecided", "left", "another pod"])
def test_the_server_judges_again(path: Path, counted: Counted, change: str) -> None:
    """Input: policy changes between connect and the arrival of the SYN. Verdict: the new one holds."""
    path.serve("4", 8311)
    path.put(ALLOWED, 8311)
    with netns.inside(path.b.fd):
        File("/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down").write_text("1")
    ip(path.b.fd, "link set eth0 down")
    try:
        child = path.node.stage.start(path.a, dial, path.b.ipv4, 8311)
        eventually(lambda: path.node.plane.statistics().maps["kernel_flows"][0] == 1)
        where = (path.b.ipv4, 8311)
        if change == "denied":
            path.put(DENIED, 8311)
        elif change == "undecided":
            path.apply(KernelPlan({where: KernelDestination(B, {})}))
        elif change == "left":
            path.apply(KernelPlan())
        else:
            path.apply(KernelPlan({where: KernelDestination(A, None)}))
    finally:
        ip(path.b.fd, "link set eth0 up")
    with pytest.raises(ConnectionRefusedError):
        child.receive()
    assert counted() == {"outbound_kernel": 1, "inbound_kernel_refused": 1}


def _forged(_pipe: Connection, source: str, destination: str, port: int) -> None:
    """Send a SYN by a raw socket, with any source address."""
    with socket.socket(
        socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
    ) as raw:
        raw.sendto(syn(source, 40000, destination, port), (destination, 0))


@pytest.mark.parametrize("kind", ["4", "6"])
def test_a_forged_source_meets_the_proxy(path: Path, counted: Counted, kind: str) -> None:
    """Input: SYNs by raw sockets, as from the allowed pod and from a stranger. Verdict: never the
    kernel path's treatment.
    """
    path.put(ALLOWED, 8312)
    for source in (path.a.address(kind), "fd77::77" if kind == "6" else "10.77.0.77"):
        path.node.stage.run(path.a, _forged, source, path.b.address(kind), 8312)
    eventually(lambda: counted().get("inbound_captured", 0) >= 2)
    assert counted().keys() == {"inbound_captured"}


def test_an_address_that_is_given_to_another_pod(path: Path, counted: Counted) -> None:
    """Input: the server's address is enrolled as another pod's. Verdict: the verdicts about the old
    pod are gone at once.
    """
    path.serve("4", 8313)
    path.put(None, 8313)
    assert path.dial("4", 8313).data.startswith(b"app ")
    fresh = Pod(netns.create(), path.b.ipv4, path.b.ipv6)
    try:
        path.node.enroll(fresh, "c")
        assert path.node.plane._maps["destinations"].items() == []
        child = path.node.stage.start(path.a, dial, path.b.ipv4, 8313)
        with accept(path.client.fds["outbound", 4, 0]) as connection:
            connection.sendall(b"proxy")
            assert child.receive().data == b"proxy"
    finally:
        path.node.plane.release("c")
        os.close(fresh.fd)


def test_a_released_pod_leaves(path: Path) -> None:
    path.put(ALLOWED, 8314)
    path.node.plane.release("b")
    assert path.node.plane._maps["destinations"].items() == []
    assert path.node.plane._maps["verdicts"].items() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bypass", [False, True])
def test_an_established_connection_is_closed(path: Path, kind: str, bypass: bool) -> None:
    """Input: close_flow() for a live connection. Verdict: both apps are told, and it is counted as closed."""
    server = path.node.stage.start(path.b, _until_reset, _any(kind), 8315)
    server.receive()
    path.put(ALLOWED, 8315, bypass=bypass)
    client = path.node.stage.start(path.a, _until_closed, path.b.address(kind), 8315)
    assert client.receive() == "connected"
    (flow,) = path.node.plane.kernel.record.flows()
    assert path.node.plane.close_flow(flow)
    assert client.receive() == errno.ECONNABORTED
    assert server.receive() == errno.ECONNRESET
    assert not path.node.plane.close_flow(flow)
    eventually(lambda: path.total(8315).closed == 1)


def _until_closed(pipe: Connection, address: str, port: int) -> int:
    with connected(address, port) as connection:
        pipe.send("connected")
        return _error_of(connection)


def _until_reset(pipe: Connection, address: str, port: int) -> int:
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        pipe.send("ready")
        connection, _ = listener.accept()
        with connection:
            return _error_of(connection)


def _error_of(connection: socket.socket) -> int:
    """Past TCP a blocking reader that is woken by the end hears EAGAIN first (net/ipv4/tcp_bpf.c: tcp_bpf_recvmsg)."""
    try:
        try:
            connection.recv(100)
        except BlockingIOError:
            connection.recv(100)
    except OSError as error:
        return error.errno or 0
    return 0


def _multipath(_pipe: Connection, address: str, port: int) -> tuple[bytes, tuple[str, int]]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 262) as connection:
        connection.settimeout(60)
        connection.connect((address, port))
        return connection.recv(100), connection.getpeername()[:2]


@pytest.mark.parametrize("kind", ["4", "6"])
def test_mptcp(path: Path, counted: Counted, kind: str) -> None:
    """Input: a multipath TCP socket, whose subflows the kernel makes. Verdict: allowed and refused as TCP is."""
    path.serve(kind, 8316)
    path.put(ALLOWED, 8316)
    data, _ = path.node.stage.run(path.a, _multipath, path.b.address(kind), 8316)
    assert data.startswith(b"app ")
    path.put(DENIED, 8316)
    with pytest.raises(OSError):
        path.node.stage.run(path.a, _multipath, path.b.address(kind), 8316)
    assert counted() == {"outbound_kernel": 1, "inbound_kernel": 1, "outbound_kernel_refused": 1}
    eventually(lambda: path.node.plane.statistics().maps["kernel_flows"][0] == 0)
    assert path.total(8316).sent == len(data)


def _early(_pipe: Connection, address: str, port: int) -> bytes:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sender:
        sender.sendto(b"early", socket.MSG_FASTOPEN, (address, port))
        return sender.recv(100)


def _serve_early(pipe: Connection, address: str, port: int) -> bytes:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listener.bind((address, port))
        listener.listen()
        pipe.send("ready")
        connection, _ = listener.accept()
        with connection:
            data = connection.recv(100)
            connection.sendall(b"late")
            return data


@pytest.mark.parametrize("kind", KINDS)
def test_tcp_fast_open(path: Path, counted: Counted, kind: str) -> None:
    """Input: data in the SYN. Verdict: allowed with its bytes counted; refused before anything leaves."""
    for pod in (path.a, path.b):
        with netns.inside(pod.fd):
            # both ways, without a cookie first
            File("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(0x1 | 0x2 | 0x4 | 0x200))
    server = path.node.stage.start(path.b, _serve_early, _any(kind), 8317)
    server.receive()
    path.put(ALLOWED, 8317)
    assert path.node.stage.run(path.a, _early, path.b.address(kind), 8317) == b"late"
    assert server.receive() == b"early"
    eventually(lambda: path.node.plane.statistics().maps["kernel_flows"][0] == 0)
    assert path.total(8317) == Total(opened=1, closed=1, received=5, sent=4)
    path.put(DENIED, 8317)
    with pytest.raises(ConnectionRefusedError):
        path.node.stage.run(path.a, _early, path.b.address(kind), 8317)
    assert counted() == {"outbound_kernel": 1, "inbound_kernel": 1, "outbound_kernel_refused": 1}


@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_io_uring(path: Path, counted: Counted, kind: str, polled: bool) -> None:
    """Input: io_uring connects. Verdict: allowed and refused as connect() is."""
    path.serve(kind, 8318)
    path.put(ALLOWED, 8318)
    assert path.node.stage.run(path.a, dial_by_ring, path.b.address(kind), 8318, polled).data.startswith(b"app ")
    path.put(DENIED, 8318)
    with pytest.raises(ConnectionRefusedError):
        path.node.stage.run(path.a, dial_by_ring, path.b.address(kind), 8318, polled)
    assert counted() == {"outbound_kernel": 1, "inbound_kernel": 1, "outbound_kernel_refused": 1}


# -- the maps --


def contents(node: Node) -> dict[str, int]:
    names = ("destinations", "verdicts", "services", "backends")
    return {name: node.plane.statistics().maps[name][0] for name in names}


def test_a_plan_that_did_not_change_writes_nothing(path: Path) -> None:
    path.put(ALLOWED, 8320, vip=80)
    before = {name: path.node.plane._maps[name].items() for name in contents(path.node)}
    path.apply(path.plan)
    assert {name: path.node.plane._maps[name].items() for name in contents(path.node)} == before


def test_a_new_client_needs_no_new_generation(path: Path) -> None:
    """Input: verdicts for one more pod, then for one less. Verdict: what is there stays as it is."""
    path.put(ALLOWED, 8321)
    before = dict(path.node.plane._maps["destinations"].items())
    path.apply(KernelPlan({where: KernelDestination(B, {A: ALLOWED, B: DENIED}) for where in path.plan.destinations}))
    assert contents(path.node)["verdicts"] == 4
    path.put(ALLOWED, 8321)
    assert contents(path.node)["verdicts"] == 2
    assert dict(path.node.plane._maps["destinations"].items()) == before


def test_damage_is_found_and_repaired(path: Path) -> None:
    path.put(ALLOWED, 8322, vip=80)
    maps = path.node.plane._maps
    before = {name: sorted(maps[name].items()) for name in contents(path.node)}
    for name in contents(path.node):
        key, value = maps[name].items()[0]
        maps[name].drop(key)
        maps[name].put(bytes(len(key)), value)
    assert len(path.node.plane.verify_node()) == 8
    path.node.plane.repair_node()
    assert {name: sorted(maps[name].items()) for name in contents(path.node)} == before


def test_a_full_map_leaves_the_port_to_the_proxy(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    """Input: room for one verdict, and two are wanted. Verdict: one port is on the kernel path, the
    other is named and is not.
    """
    node = make_node(maps={"verdicts": 1})
    for uid, pod in (("a", a), ("b", b)):
        node.enroll(pod, uid)
    plan = KernelPlan({(b.ipv4, port): KernelDestination(B, {A: ALLOWED}) for port in (1, 2)})
    node.plane.kernel.sync(plan, node.plane.numbers())
    assert node.plane.kernel.left_out == {
        (b.ipv4, 2): "the BPF map verdicts is full (1 entries): raise redirect.maps.verdicts"
    }
    assert contents(node) == {"destinations": 1, "verdicts": 1, "services": 0, "backends": 0}
    assert list(node.plane.kernel.faults()) == []
    node.plane.kernel.sync(KernelPlan({(b.ipv4, 2): KernelDestination(B, {A: ALLOWED})}), node.plane.numbers())
    assert node.plane.kernel.left_out == {}
    assert contents(node) == {"destinations": 1, "verdicts": 1, "services": 0, "backends": 0}


def test_services_that_are_gone_are_forgotten(path: Path, b: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: one Service after the other, at ClusterIPs of their own. Verdict: few numbers are known, those that are
    there among them.
    """
    monkeypatch.setattr(kernel_maps, "SPARE_NAMES", 3)
    kernel = path.node.plane.kernel
    for number in range(20):
        where = (f"10.99.1.{number}", 80)
        path.apply(KernelPlan({}, {where: KernelService(f"ns/s{number}", ((b.ipv4, 80),))}))
    assert len(kernel._names) == len(kernel._services) <= 5
    assert kernel.service_name(kernel._services["ns/s19"]) == "ns/s19"


def test_flows_of_services_that_are_gone_are_not_looked_through_at_each_change(
    path: Path, b: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: one Service after the other, by each of which something is counted yet when it is gone. Verdict: it is
    looked through again when there are SPARE_NAMES more.
    """
    monkeypatch.setattr(kernel_maps, "SPARE_NAMES", 3)
    kernel = path.node.plane.kernel
    looked: list[int] = []

    def services() -> set[int]:
        looked.append(len(kernel._names))
        return set(kernel._names)

    monkeypatch.setattr(kernel.counts, "services", services)
    for number in range(20):
        where = (f"10.99.1.{number}", 80)
        path.apply(KernelPlan({}, {where: KernelService(f"ns/s{number}", ((b.ipv4, 80),))}))
    assert looked == [6, 10, 14, 18]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_daemon_takes_over(make_node: Callable[..., Node], a: Pod, b: Pod, kind: str) -> None:
    """Input: the daemon is replaced while a connection lives. Verdict: numbers stay, the connection
    goes on and is judged by its pods; the rest is pruned.
    """
    node = make_node()
    old = Path(node, a, b)
    node.stage.start(b, _answer, _any(kind), 8323).receive()
    old.put(ALLOWED, 8323, vip=80)
    child = node.stage.start(a, _exchange, _vip(kind), 80, "client")
    assert child.receive() == "connected"
    numbers = node.plane.numbers()
    node.plane.close()
    node.plane = node.load()
    assert contents(node) == {"destinations": 2, "verdicts": 2, "services": 2, "backends": 2}
    new = Path(node, a, b)
    assert node.plane.numbers() == numbers
    new.put(ALLOWED, 8323, vip=80)
    assert contents(node) == {"destinations": 2, "verdicts": 2, "services": 2, "backends": 2}
    child.send(500)
    assert child.receive() == "done"
    (flow,) = node.plane.kernel.record.flows()
    assert (flow.source, flow.destination, flow.service) == (numbers[A], numbers[B], "ns/svc")
    child.send(0)
    assert child.receive() == (500, 6)
    eventually(lambda: node.plane.statistics().maps["kernel_flows"][0] == 0)
    assert new.total(8323, "ns/svc") == Total(closed=1, received=500, sent=6)
    new.apply(KernelPlan())
    assert contents(node) == {"destinations": 0, "verdicts": 0, "services": 0, "backends": 0}
