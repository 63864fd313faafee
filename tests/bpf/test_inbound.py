"""sk_lookup: what happens to the connections that reach a pod from outside."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from ipaddress import IPv6Address
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nodeagent.steps import drained
from tests.bpf.conftest import Node
from tests.bpf.world import Pod, accept, dial, hold, ip, serve
from tests.waiting import DEADLINE

KINDS = ["4", "6", "mapped"]
Counted = Callable[[], dict[str, int]]


def _family(kind: str) -> int:
    return 6 if kind == "6" else 4


def _any(kind: str) -> str:
    return "::" if kind == "6" else "0.0.0.0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("port", [80, 15001, 15006, 65535])
def test_steered_to_the_listener_whatever_the_port(
    node: Node, a: Pod, b: Pod, counted: Counted, kind: str, port: int
) -> None:
    """Input: a SYN from outside for any port. Verdict: the 15006 listener accepts it; both ends'
    addresses stay what they were.
    """
    listeners = node.enroll(b)
    child = node.stage.start(a, dial, b.address(kind), port)
    with accept(listeners.fds["inbound", _family(kind), 0]) as connection:
        local, peer = connection.getsockname()[:2], connection.getpeername()[:2]
        connection.sendall(b"proxy")
        seen = child.receive()
    version6 = kind == "6"
    assert local == (b.ipv6 if version6 else b.ipv4, port)
    assert peer == (a.ipv6 if version6 else a.ipv4, seen.name[1])
    assert seen.data == b"proxy"
    assert counted() == {"inbound_captured": 1, "outbound_unknown_allowed": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_daemon_opens_inside_the_pod_reaches_the_app(node: Node, b: Pod, kind: str) -> None:
    """Input: a socket made by sockets() connects to the pod's own address and to loopback. Verdict:
    the app, not the listener.
    """
    node.stage.start(b, serve, _any(kind), 8180).receive()
    node.enroll(b, protected=True)
    for address in (b.address(kind), {"4": "127.0.0.1", "6": "::1", "mapped": "::ffff:127.0.0.1"}[kind]):
        (upstream,) = node.plane.sockets("pod", 6 if ":" in address else 4, 1)
        with upstream:
            assert upstream.getblocking() is False
            upstream.settimeout(60)
            upstream.connect((address, 8180))
            assert upstream.recv(100).startswith(b"app ")


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_port_passes(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    node.enroll(b, protected=True, exclude_inbound=frozenset({8181}), exclude_outbound=frozenset({8182}))
    node.stage.start(b, serve, _any(kind), 8181).receive()
    assert node.stage.run(a, dial, b.address(kind), 8181).data.startswith(b"app ")
    assert counted() == {"inbound_excluded": 1, "outbound_unknown_allowed": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_not_the_pods_is_refused(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    """Input: a connection to an address of the pod's interface that its object does not have.
    Verdict: reset at once.
    """
    extra = "fd77::99" if kind == "6" else "10.77.0.99"
    ip(b.fd, f"addr add {extra}/{'64' if kind == '6' else '24'} dev eth0 {'nodad' if kind == '6' else ''}")
    try:
        node.stage.start(b, serve, _any(kind), 8182).receive()
        node.enroll(b)
        with pytest.raises(ConnectionRefusedError):
            node.stage.run(a, dial, f"::ffff:{extra}" if kind == "mapped" else extra, 8182)
        assert counted() == {"inbound_unknown_refused": 1, "outbound_unknown_allowed": 1}
    finally:
        ip(b.fd, f"addr del {extra}/{'64' if kind == '6' else '24'} dev eth0")


def _from_link_local(_pipe: Connection, address: str, port: int) -> bytes:
    """Dial from the link-local address of eth0, which binds the socket to it, without any privilege."""
    own = next(
        line.split()
        for line in Path("/proc/net/if_inet6").read_text().splitlines()
        if line.startswith("fe80") and line.endswith("eth0")
    )
    os.setresuid(65534, 65534, 65534)
    with socket.socket(socket.AF_INET6) as connection:
        connection.bind((str(IPv6Address(int(own[0], 16))), 0, 0, socket.if_nametoindex("eth0")))
        connection.connect((address, port))
        return connection.recv(100)


@pytest.mark.parametrize("protected", [False, True])
def test_who_comes_by_a_link_local_address_is_nobody(
    node: Node, a: Pod, b: Pod, counted: Counted, protected: bool
) -> None:
    """Input: an enrolled pod's way out of capture by which no policy knows it. Verdict: what a
    policy protects is reset at once, another pod's listener takes it.
    """
    node.enroll(a, "client")
    listeners = node.enroll(b, protected=protected)
    child = node.stage.start(a, _from_link_local, b.ipv6, 8187)
    if protected:
        with pytest.raises(ConnectionRefusedError):
            child.receive()
        assert counted() == {"inbound_unknown_refused": 1, "outbound_unredirectable_passed": 1}
    else:
        with accept(listeners.fds["inbound", 6, 0]) as connection:
            connection.sendall(b"proxy")
            assert child.receive() == b"proxy"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", ["stopped", "silent", "no listener"])
@pytest.mark.parametrize("protected", [False, True])
def test_dead_daemon(node: Node, a: Pod, b: Pod, counted: Counted, kind: str, cause: str, protected: bool) -> None:
    """Input: a connection from outside and the daemon is not there. Verdict: PERMISSIVE reaches the
    app, STRICT is reset.
    """
    node.stage.start(b, serve, _any(kind), 8183).receive()
    listeners = node.enroll(b, protected=protected)
    if cause == "stopped":
        node.plane.stop_beating()
    elif cause == "silent":
        node.fall_silent()
    else:
        listeners.close()
    if protected:
        with pytest.raises(ConnectionRefusedError):
            node.stage.run(a, dial, b.address(kind), 8183)
        assert counted() == {"inbound_dead_refused": 1, "outbound_unknown_allowed": 1}
    else:
        assert node.stage.run(a, dial, b.address(kind), 8183).data.startswith(b"app ")
        assert counted() == {"inbound_dead_passed": 1, "outbound_unknown_allowed": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protected", [False, True])
def test_dead_daemon_and_a_port_of_another_mode(
    node: Node, a: Pod, b: Pod, counted: Counted, kind: str, protected: bool
) -> None:
    """Input: one port's mode is not the pod's, and the daemon is gone. Verdict: the port's own mode
    holds there, the pod's elsewhere.
    """
    for port in (8185, 8186):
        node.stage.start(b, serve, _any(kind), port).receive()
    node.enroll(b, protected=protected, ports=((8185, not protected),))
    node.plane.stop_beating()
    passes, refuses = (8185, 8186) if protected else (8186, 8185)
    assert node.stage.run(a, dial, b.address(kind), passes).data.startswith(b"app ")
    with pytest.raises(ConnectionRefusedError):
        node.stage.run(a, dial, b.address(kind), refuses)
    assert counted() == {"inbound_dead_passed": 1, "inbound_dead_refused": 1, "outbound_unknown_allowed": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_established_connections_stay_where_they_are(node: Node, a: Pod, b: Pod, kind: str) -> None:
    """Input: both ends of a live connection are enrolled, and released. Verdict: it never notices."""
    server = node.stage.start(b, _echo, _any(kind), 8184)
    server.receive()
    client = node.stage.start(a, hold, b.address(kind), 8184)
    assert client.receive() == "connected"
    pods = {"a": a, "b": b}
    for change in (lambda uid: node.enroll(pods[uid], uid, protected=True), node.plane.release):
        for uid in pods:
            change(uid)
        client.send(b"still here")
        assert client.receive() == (b"still here", (b.address(kind), 8184))


def _echo(pipe: Connection, address: str, port: int) -> None:
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        pipe.send("ready")
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protected", [False, True])
def test_a_port_that_is_probed_opens_only_while_something_listens_there(
    node: Node, a: Pod, b: Pod, counted: Counted, kind: str, protected: bool
) -> None:
    """Input: SYNs to a port that a TCP probe asks for, before, while and after the application
    listens there. Verdict: a reset, the listener, a reset.
    """
    port = 8190
    listeners = node.enroll(b, protected=protected, probed=frozenset({port}))

    def refused() -> bool:
        listener = listeners.fds["inbound", _family(kind), 0]
        connected = node.stage.start(a, dial, b.address(kind), port)
        ready, _, _ = select.select([listener, connected.pipe], [], [], DEADLINE)
        if listener in ready:
            accept(listener).close()
            connected.receive()
            return False
        with pytest.raises(ConnectionRefusedError):
            connected.receive()
        return True

    assert refused()
    local = node.stage.start(b, serve, "::1" if kind == "6" else "127.0.0.1", port)
    local.receive()
    assert refused(), "what listens on loopback alone nobody reaches from outside"
    local.stop()
    application = node.stage.start(b, serve, _any(kind), port)
    application.receive()
    assert not refused(), "it is known at once"
    application.stop()
    drained(node.plane.probed.look())
    assert refused()
    assert counted()["inbound_unanswered"] == 3
    node.enroll(b, protected=protected)
    assert not refused(), "nothing is said of a port that is not probed any more"


def test_what_listened_before_its_pod_was_captured_is_found(node: Node, a: Pod, b: Pod) -> None:
    node.stage.start(b, serve, "0.0.0.0", 8191).receive()
    listeners = node.enroll(b, probed=frozenset({8191, 8192}))
    child = node.stage.start(a, dial, b.ipv4, 8191)
    accept(listeners.fds["inbound", 4, 0]).close()
    child.receive()
    with pytest.raises(ConnectionRefusedError):
        node.stage.run(a, dial, b.ipv4, 8192)
