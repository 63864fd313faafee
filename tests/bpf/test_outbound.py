"""connect4/6, getpeername, getsockname, sockops, sock_release: what happens to the connections that a pod opens."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nodeagent.redirect import netns
from nodeagent.redirect.original import Original, OriginalDestinations
from nodeagent.redirect.pod import listener_key
from tests.bpf.conftest import Node, growth, in_use
from tests.bpf.world import Pod, Seen, Stage, accept, answering, connected, dial, dial_by_ring, serve, take
from tests.waiting import eventually

KINDS = ["4", "6", "mapped"]
Counted = Callable[[], dict[str, int]]
NOBODY = 65534


@pytest.fixture(scope="module")
def _denying() -> Iterator[Node]:
    node = Node(Stage.make(), unknownPods="deny")
    yield node
    node.remove()


@pytest.fixture
def denying(_denying: Node) -> Iterator[Node]:
    """A node that denies pods it does not know."""
    with in_use(_denying) as node:
        yield node


@pytest.mark.parametrize("kind", KINDS)
def test_redirected_and_the_original_destination_recovered(
    node: Node, a: Pod, b: Pod, counted: Counted, kind: str
) -> None:
    """Input: an enrolled pod dials another address. Verdict: the in-pod listener gets it, and
    nobody in the pod can tell.
    """
    listeners = node.enroll(a)
    child = node.stage.start(a, dial, b.address(kind), 8080)
    with accept(listeners.fds["outbound", 6 if kind == "6" else 4, 0]) as connection:
        assert take(node.destinations, connection) == (b.ipv6 if kind == "6" else b.ipv4, 8080)
        assert take(node.destinations, connection) is None
        source = connection.getpeername()[1]
        connection.sendall(b"proxy")
        seen: Seen = child.receive()
    assert seen == Seen((b.address(kind), 8080), (a.address(kind), source), b"proxy")
    assert counted() == {"outbound_captured": 1}
    assert node.plane.statistics().maps["by_cookie"][0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_own_address_and_loopback_are_left_alone(node: Node, a: Pod, counted: Counted, kind: str) -> None:
    node.enroll(a)
    server = node.stage.start(a, serve, "::" if kind == "6" else "0.0.0.0", 8081)
    server.receive()
    loopback = {"4": ["127.0.0.1", "0.0.0.0"], "6": ["::1", "::"], "mapped": ["::ffff:127.0.0.1", "::ffff:0.0.0.0"]}[
        kind
    ]
    for address in (a.address(kind), *loopback):
        assert node.stage.run(a, dial, address, 8081).data.startswith(b"app ")
    assert node.stage.run(a, dial, "127.7.7.7" if kind == "4" else a.address(kind), 8081).data.startswith(b"app ")
    assert counted() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_port_passes(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    node.enroll(a, exclude_outbound=frozenset({8082}), exclude_inbound=frozenset({8083}))
    node.stage.start(b, serve, "::" if kind == "6" else "0.0.0.0", 8082).receive()
    assert node.stage.run(a, dial, b.address(kind), 8082).data.startswith(b"app ")
    assert counted() == {"outbound_excluded": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["allow", "deny"])
def test_unknown_pods(node: Node, denying: Node, a: Pod, b: Pod, answer: str, kind: str) -> None:
    """Input: a process below the captured cgroup whose pod is not enrolled. Verdict: the configured
    one; loopback always works.
    """
    node = denying if answer == "deny" else node
    counted = growth(node)
    for pod in (a, b):
        node.stage.start(pod, serve, "::" if kind == "6" else "0.0.0.0", 8084).receive()
    assert node.stage.run(a, dial, "::1" if kind == "6" else "127.0.0.1", 8084).data.startswith(b"app ")
    if answer == "allow":
        assert node.stage.run(a, dial, b.address(kind), 8084).data.startswith(b"app ")
        assert counted() == {"outbound_unknown_allowed": 1}
    else:
        with pytest.raises(PermissionError):
            node.stage.run(a, dial, b.address(kind), 8084)
        assert counted() == {"outbound_unknown_denied": 1}


def test_the_hosts_network_namespace_is_not_captured(denying: Node) -> None:
    counted = growth(denying)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # a closed port of an address outside: the host's own, so that no packet leaves
    with pytest.raises(OSError) as refused:
        denying.stage.run(None, dial, host_address(), port)
    assert refused.value.errno == errno.ECONNREFUSED
    assert counted() == {}


def host_address() -> str:
    """An address of this machine that is not loopback; without one, loopback must do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("cgroup", ["agent", "agent/below"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_agents_own_connections_pass(node: Node, a: Pod, b: Pod, counted: Counted, kind: str, cgroup: str) -> None:
    """Input: the daemon, in a cgroup below the captured one, dials from inside an enrolled pod.
    Verdict: not captured.
    """
    node.enroll(a, protected=True)
    node.stage.start(b, serve, "::" if kind == "6" else "0.0.0.0", 8085).receive()
    assert node.stage.run(a, dial, b.address(kind), 8085, cgroup=cgroup).data.startswith(b"app ")
    assert counted() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", ["stopped", "silent", "no listener"])
@pytest.mark.parametrize("protected", [False, True])
def test_dead_daemon(node: Node, a: Pod, b: Pod, counted: Counted, kind: str, cause: str, protected: bool) -> None:
    """Input: an enrolled pod dials and the daemon is not there. Verdict: PERMISSIVE passes, STRICT is refused."""
    node.stage.start(b, serve, "::" if kind == "6" else "0.0.0.0", 8086).receive()
    # after the fork, for a copy in another process would keep them open
    listeners = node.enroll(a, protected=protected)
    if cause == "stopped":
        node.plane.stop_beating()
    elif cause == "silent":
        node.fall_silent()
    else:
        listeners.close()
    if protected:
        with pytest.raises(PermissionError):
            node.stage.run(a, dial, b.address(kind), 8086)
        assert counted() == {"outbound_dead_refused": 1}
    else:
        assert node.stage.run(a, dial, b.address(kind), 8086).data.startswith(b"app ")
        assert counted() == {"outbound_dead_passed": 1}


def _dial_many(pipe: Connection, address: str, port: int, count: int) -> list[str]:
    """Open *count* connections, and keep them until told."""
    held, results = [], []
    for _ in range(count):
        try:
            held.append(connected(address, port))
            results.append("connected")
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
    pipe.send(results)
    pipe.recv()
    for one in held:
        one.close()
    return [str(connected(address, port).getpeername()[1])]


@pytest.mark.parametrize("protected", [False, True])
def test_full_map_fails_safe(make_node: Callable[..., Node], a: Pod, b: Pod, protected: bool) -> None:
    """Input: more connections than by_cookie holds. Verdict: STRICT is refused, PERMISSIVE passes;
    room again once they close.
    """
    node = make_node(maps={"connections": 4})
    listeners = node.enroll(a, protected=protected)
    node.stage.start(b, serve, "0.0.0.0", 8087).receive()
    with answering(listeners, b"proxy"):
        child = node.stage.start(a, _dial_many, b.ipv4, 8087, 6)
        results = child.receive()
        counters = node.counted()
        captured = counters["outbound_captured"]
        assert 4 <= captured < 6
        assert counters == {
            "outbound_captured": captured,
            "outbound_full_refused" if protected else "outbound_full_passed": 6 - captured,
        }
        assert results == ["connected"] * captured + (["EPERM"] if protected else ["connected"]) * (6 - captured)
        assert node.plane.statistics().maps["by_cookie"] == (captured, 4)
        child.send("close")
        assert child.receive() == ["8087"]
        assert node.counted()["outbound_captured"] == captured + 1


def _udp(_pipe: Connection, address: str, port: int) -> tuple[str, int]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((address, port))
        sender.send(b"datagram")
        return sender.getpeername()[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_udp_is_left_alone(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    """Both directions: from an enrolled pod, to an enrolled pod."""
    node.enroll(a, protected=True)
    node.enroll(b, "other", protected=True)
    server = node.stage.start(b, _receive_datagram, "::" if kind == "6" else "0.0.0.0", 8088)
    server.receive()
    assert node.stage.run(a, _udp, b.address(kind), 8088) == (b.address(kind), 8088)
    assert server.receive() == (b"datagram", a.ipv6 if kind == "6" else a.ipv4)
    assert counted() == {}


def _receive_datagram(pipe: Connection, address: str, port: int) -> tuple[bytes, str]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, port))
        receiver.settimeout(60)
        pipe.send("ready")
        data, peer = receiver.recvfrom(100)
        return data, peer[0]


def _fast_open(_pipe: Connection, address: str, port: int) -> tuple[bytes, tuple[str, int]]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sender:
        sender.sendto(b"early", socket.MSG_FASTOPEN, (address, port))
        return sender.recv(100), sender.getpeername()[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_tcp_fast_open(node: Node, a: Pod, b: Pod, kind: str) -> None:
    """Input: data sent with the SYN, without connect(). Verdict: captured like any other, original
    destination known.
    """
    listeners = node.enroll(a)
    with netns.inside(a.fd):
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("5")  # as a client, without a cookie first
    child = node.stage.start(a, _fast_open, b.address(kind), 8089)
    with accept(listeners.fds["outbound", 6 if kind == "6" else 4, 0]) as connection:
        assert take(node.destinations, connection) == (b.ipv6 if kind == "6" else b.ipv4, 8089)
        assert connection.recv(100) == b"early"
        connection.sendall(b"proxy")
        assert child.receive() == (b"proxy", (b.address(kind), 8089))


@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_io_uring(node: Node, a: Pod, b: Pod, counted: Counted, kind: str, polled: bool) -> None:
    """Input: io_uring connects, by the app's call or by a thread of the kernel. Verdict: captured
    as connect() is, with the same names.
    """
    listeners = node.enroll(a, protected=True)
    child = node.stage.start(a, dial_by_ring, b.address(kind), 8097, polled)
    with accept(listeners.fds["outbound", 6 if kind == "6" else 4, 0]) as connection:
        assert take(node.destinations, connection) == (b.ipv6 if kind == "6" else b.ipv4, 8097)
        source = connection.getpeername()[1]
        connection.sendall(b"proxy")
        assert child.receive() == Seen((b.address(kind), 8097), (a.address(kind), source), b"proxy")
    assert counted() == {"outbound_captured": 1}


def _bound(_pipe: Connection, address: str, port: int, device: str, source: str, user: int = 0) -> bytes:
    """Dial from a socket that is bound to *device* or *source*, as *user*: another than root's has no capabilities."""
    if user:
        os.setresuid(user, user, user)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        if device:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if source:
            connection.bind((source, 0))
        connection.connect((address, port))
        return connection.recv(100)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_to_a_device(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    """Input: SO_BINDTODEVICE, by which lo cannot be reached. Verdict: taken off the device and captured."""
    listeners = node.enroll(a)
    child = node.stage.start(a, _bound, b.address(kind), 8090, "eth0", "")
    with accept(listeners.fds["outbound", 6 if kind == "6" else 4, 0]) as connection:
        assert take(node.destinations, connection) == (b.ipv6 if kind == "6" else b.ipv4, 8090)
        connection.sendall(b"proxy")
        assert child.receive() == b"proxy"
    assert counted() == {"outbound_captured": 1}


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bound_to_a_device_without_privilege(
    node: Node, a: Pod, b: Pod, counted: Counted, kind: str, protected: bool
) -> None:
    """Input: the same without CAP_NET_RAW, so that the kernel keeps the socket on its device.
    Verdict: a protected pod's is refused, another's passes.
    """
    node.enroll(a, protected=protected)
    node.stage.start(b, serve, "::" if kind == "6" else "0.0.0.0", 8090).receive()
    if protected:
        with pytest.raises(PermissionError):
            node.stage.run(a, _bound, b.address(kind), 8090, "eth0", "", NOBODY)
        assert counted() == {"outbound_unredirectable_refused": 1}
    else:
        assert node.stage.run(a, _bound, b.address(kind), 8090, "eth0", "", NOBODY).startswith(b"app ")
        assert counted() == {"outbound_unredirectable_passed": 1}
    assert node.plane.statistics().maps["by_cookie"][0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bound_to_a_source_address(node: Node, a: Pod, b: Pod, kind: str) -> None:
    listeners = node.enroll(a)
    child = node.stage.start(a, _bound, b.address(kind), 8091, "", a.address(kind))
    with accept(listeners.fds["outbound", 6 if kind == "6" else 4, 0]) as connection:
        assert take(node.destinations, connection) == (b.ipv6 if kind == "6" else b.ipv4, 8091)
        connection.sendall(b"proxy")
        assert child.receive() == b"proxy"


def _again(_pipe: Connection, first: tuple[str, int], second: tuple[str, int]) -> Seen:
    """A socket whose first connection is refused connects again."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(first)
        except ConnectionRefusedError:
            connection.connect(second)
        return Seen(connection.getpeername()[:2], connection.getsockname()[:2], connection.recv(100))


def test_a_second_connect_forgets_the_first(node: Node, a: Pod, b: Pod, counted: Counted) -> None:
    """Input: a redirected connect() that is refused, then one to loopback on the same socket.
    Verdict: its names are the real ones.
    """
    node.stage.start(a, serve, "127.0.0.1", 8092).receive()
    listeners = node.enroll(a)
    with netns.inside(a.fd), socket.create_server(("127.0.0.1", 0)) as other:
        # BPF believes in a listener, but nothing listens on 15001.
        key = listener_key(node.plane._enrolled["pod"].pod.netns.cookie, "outbound", 4)
        listeners.fds["outbound", 4, 0].close()
        node.plane._maps["listeners"].put(key, struct.pack("=Q", other.fileno()))
        seen: Seen = node.stage.run(a, _again, (b.ipv4, 8093), ("127.0.0.1", 8092))
    assert seen.peer == ("127.0.0.1", 8092)
    assert seen.name[0] == "127.0.0.1"
    assert counted() == {"outbound_captured": 1}
    assert node.plane.statistics().maps["by_cookie"][0] == 0


def _unprivileged(_pipe: Connection, map_fd: int, cookie: int, port: int) -> Original | None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    return OriginalDestinations(map_fd).take(cookie, "127.0.0.1", port)


def test_a_worker_needs_no_privilege(node: Node, a: Pod, b: Pod) -> None:
    listeners = node.enroll(a)
    node.stage.start(a, dial, b.ipv4, 8094)
    with accept(listeners.fds["outbound", 4, 0]) as connection:
        cookie, port = node.plane._enrolled["pod"].pod.netns.cookie, connection.getpeername()[1]
        assert node.stage.run(None, _unprivileged, node.plane.original_map_fd, cookie, port) == (b.ipv4, 8094, None)


def test_a_direct_call_of_the_listener_has_no_original(node: Node, a: Pod) -> None:
    listeners = node.enroll(a)
    node.stage.start(a, dial, "127.0.0.1", 15001)
    with accept(listeners.fds["outbound", 4, 0]) as connection:
        assert take(node.destinations, connection) is None


def test_slots_share_the_connections(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    """Input: two worker slots. Verdict: each slot's listener gets some of 64 connections, none is lost."""
    node = make_node()
    node.plane.close()
    node.plane = node.load(slots=2)
    listeners = node.enroll(a)
    child = node.stage.start(a, _dial_many, b.ipv4, 8095, 64)
    assert child.receive() == ["connected"] * 64
    counts = [_pending(listeners.fds["outbound", 4, slot]) for slot in (0, 1)]
    assert sum(counts) == 64
    assert min(counts) > 10


def _pending(listener: socket.socket) -> int:
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def _mptcp(_pipe: Connection, address: str, port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as connection:
        connection.settimeout(60)
        connection.connect((address, port))
        return connection.recv(100)


def test_mptcp_is_tcp(node: Node, a: Pod, b: Pod, counted: Counted) -> None:
    """Input: a multipath TCP socket, whose subflows the kernel makes. Verdict: captured, and
    nothing of it stays in the map.
    """
    listeners = node.enroll(a, protected=True)
    node.stage.start(b, serve, "0.0.0.0", 8096).receive()
    with answering(listeners, b"proxy"):
        assert node.stage.run(a, _mptcp, b.ipv4, 8096) == b"proxy"
    assert counted() == {"outbound_captured": 1}
    eventually(lambda: node.plane.statistics().maps["by_cookie"][0] == 0)
