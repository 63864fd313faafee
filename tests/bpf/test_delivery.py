"""Deliveries: what a worker dials for a client reaches the application, which sees the client;
nobody else's connection passes for one.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from nodeagent.redirect.delivery import Announcements
from tests.bpf.conftest import Node
from tests.bpf.world import Pod, accept, connected
from tests.waiting import eventually

KINDS = ["4", "6", "mapped"]
Counted = Callable[[], dict[str, int]]


def _any(kind: str) -> str:
    return "::" if kind != "4" else "0.0.0.0"


def _plain(kind: str) -> str:
    """The kind of address that a worker dials: never a mapped one."""
    return "6" if kind == "6" else "4"


def _tell(pipe: Connection, address: str, port: int) -> None:
    """Answer every connection with the peer that accept() and getpeername() say; close when the client does."""
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, dualstack_ipv6=address == "::"
    ) as listener:
        pipe.send("ready")
        while True:
            connection, accepted = listener.accept()
            with connection:
                connection.sendall(
                    f"{accepted[0]} {accepted[1]} {connection.getpeername()[0]} {connection.getpeername()[1]}".encode()
                )
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1)


def _deliver(
    _pipe: Connection, announced: int, client: str, address: str, port: int, source_port: int = 0
) -> tuple[str, int]:
    """Dial as a worker does for *client* (empty: without a word to the kernel); return the answer
    and the port that it was dialled from.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("::" if ":" in address else "0.0.0.0", source_port))
        if client:
            Announcements(announced).put(connection, client)
        connection.connect((address, port))
        answer, own = connection.recv(200).decode(), connection.getsockname()[1]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the port is free at once
        return answer, own


def _nothing_left(node: Node) -> None:
    eventually(lambda: [len(node.plane._maps[name].items()) for name in ("deliveries", "clients")] == [0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["agent/below", ".."], ids=["below the pods' cgroup", "above it"])
def test_over_the_network_to_the_application(
    node: Node, a: Pod, b: Pod, counted: Counted, where: str, kind: str
) -> None:
    """Input: a worker's socket in the client's pod, announced; the daemon's cgroup is anywhere.
    Verdict: the server's application, past its listener, and it sees the client.
    """
    node.stage.start(b, _tell, _any(kind), 8400).receive()
    node.enroll(a, "a", protected=True)
    node.enroll(b, "b", protected=True)
    client = a.address(_plain(kind))
    answer, port = node.stage.run(
        a, _deliver, node.plane.announced_map_fd, client, b.address(_plain(kind)), 8400, cgroup=where
    )
    assert answer == " ".join([f"{a.address(kind)} {port}"] * 2)
    assert counted() == {"inbound_delivered": 1}
    _nothing_left(node)
    assert node.plane._maps["announced"].items() == []


@pytest.mark.parametrize("kind", KINDS)
def test_within_the_servers_pod_the_application_sees_the_client(node: Node, a: Pod, b: Pod, kind: str) -> None:
    """Input: a worker's socket in the server's pod, announced for another pod. Verdict: accept()
    and getpeername() say that one.
    """
    node.stage.start(b, _tell, _any(kind), 8401).receive()
    node.enroll(b, "b", protected=True)
    for _ in range(2):
        answer, port = node.stage.run(
            b,
            _deliver,
            node.plane.announced_map_fd,
            a.address(_plain(kind)),
            b.address(_plain(kind)),
            8401,
            cgroup="agent",
        )
        assert answer == " ".join([f"{a.address(kind)} {port}"] * 2)
        _nothing_left(node)


@pytest.mark.parametrize("kind", ["4", "6"])
def test_what_is_not_announced_meets_the_listener(node: Node, a: Pod, b: Pod, counted: Counted, kind: str) -> None:
    """Input: a delivery, then from the very same port a socket of the pod's and one of the agent's,
    unannounced. Verdict: the proxy judges them.
    """
    node.stage.start(b, _tell, _any(kind), 8402).receive()
    listeners = node.enroll(b, "b", protected=True)  # a is none of the mesh's: its sockets go where they please
    fd, there = node.plane.announced_map_fd, b.address(kind)
    _, port = node.stage.run(a, _deliver, fd, a.address(kind), there, 8402, cgroup="agent")
    _nothing_left(node)
    for group in ("pod", "agent"):
        child = node.stage.start(a, _deliver, fd, "", there, 8402, port, cgroup=group)
        with accept(listeners.fds["inbound", 6 if kind == "6" else 4, 0]) as connection:
            connection.sendall(b"proxy")
            assert child.receive() == ("proxy", port)
    assert counted() == {"inbound_delivered": 1, "inbound_captured": 2, "outbound_unknown_allowed": 1}


@pytest.mark.parametrize("kind", ["4", "6"])
def test_a_dial_that_fails_leaves_nothing(node: Node, a: Pod, b: Pod, kind: str) -> None:
    """Input: an announced dial to a port where nothing listens. Verdict: refused, and no record
    remains by which another could pass.
    """
    node.enroll(b, "b", protected=True)
    with pytest.raises(ConnectionRefusedError):
        node.stage.run(a, _deliver, node.plane.announced_map_fd, a.address(kind), b.address(kind), 8403, cgroup="agent")
    _nothing_left(node)


def test_a_connection_of_the_pods_own_keeps_its_name(node: Node, b: Pod) -> None:
    """Input: a pod connects to itself. Verdict: its application sees the pod."""
    node.stage.start(b, _tell, "0.0.0.0", 8404).receive()
    node.enroll(b, "b")
    assert node.stage.run(b, _itself, b.ipv4, 8404).startswith(f"{b.ipv4} ")


def _itself(_pipe: Connection, address: str, port: int) -> str:
    with connected(address, port) as connection:
        return connection.recv(200).decode()
