"""What sock_diag says of sockets, read here and by pyroute2: the same."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest
from pyroute2 import DiagSocket
from pyroute2.netlink.diag import SS_CONN, SS_LISTEN

from nodeagent.redirect import netns, sock_diag
from nodeagent.redirect.sock_diag import ANY_COOKIE, CarriedBytes, Ends
from tests.bpf.world import eventually

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_INET_DIAG_INFO = 1 << 1


@pytest.fixture
def namespace() -> Iterator[int]:
    made = netns.create()
    yield made
    os.close(made)


@contextlib.contextmanager
def connected(namespace: int, family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and the server's side of its connection."""
    with netns.inside(namespace):
        listener = socket.create_server((LOOPBACK[family], 0), family=family)
        client = socket.create_connection(listener.getsockname()[:2])
    with listener, client, listener.accept()[0] as server:
        yield client, server


def by_pyroute2(namespace: int) -> dict[Ends, CarriedBytes]:
    """Return what pyroute2 reads of every connected socket: bytes acknowledged, without the SYN's, and received."""
    found = {}
    with netns.inside(namespace), DiagSocket() as diagnosis:
        diagnosis.bind()
        for family in LOOPBACK:
            for each in diagnosis.get_sock_stats(family=family, states=SS_CONN, extensions=_INET_DIAG_INFO):
                info = each.get_attr("INET_DIAG_INFO")
                ends = (
                    (each["idiag_src"], each["idiag_sport"]),
                    (each["idiag_dst"], each["idiag_dport"]),
                )
                found[ends] = CarriedBytes(info["tcpi_bytes_acked"] - 1, info["tcpi_bytes_received"])
    return found


def ends_of(connection: socket.socket) -> Ends:
    own, peer = connection.getsockname(), connection.getpeername()
    return (own[0], own[1]), (peer[0], peer[1])


def test_what_a_client_has_carried(namespace: int) -> None:
    """Input: connections of both families that have sent 1,000 and received 70 bytes. Verdict: so
    many, here and by pyroute2.
    """
    with (
        connected(namespace, socket.AF_INET) as (client, server),
        connected(namespace, socket.AF_INET6) as (client6, server6),
    ):
        for one, other in ((client, server), (client6, server6)):
            one.sendall(b"x" * 1000)
            other.sendall(b"y" * 70)
        expected = CarriedBytes(1000, 70)
        eventually(lambda: all(sock_diag.clients(namespace)[ends_of(one)] == expected for one in (client, client6)))
        theirs = by_pyroute2(namespace)
        assert {ends: theirs[ends] for ends in map(ends_of, (client, client6))} == {
            ends_of(client): expected,
            ends_of(client6): expected,
        }
        assert theirs.keys() == sock_diag.clients(namespace).keys()


def test_who_listens(namespace: int) -> None:
    """Input: listeners at every address and at loopback. Verdict: those that are reached from
    outside, as pyroute2 says.
    """
    with (
        netns.inside(namespace),
        socket.create_server(("", 0)) as everywhere,
        socket.create_server(("::", 0), family=socket.AF_INET6) as everywhere6,
        socket.create_server(("127.0.0.1", 0)) as inside,
        DiagSocket() as diagnosis,
    ):
        diagnosis.bind()
        theirs = {
            each["idiag_sport"]
            for family in LOOPBACK
            for each in diagnosis.get_sock_stats(family=family, states=1 << SS_LISTEN)
        }
        reached = {each.getsockname()[1] for each in (everywhere, everywhere6)}
        assert sock_diag.listening(namespace, theirs | {1}) == reached
        assert theirs == reached | {inside.getsockname()[1]}


def test_who_listens_where_a_pod_listens_everywhere(namespace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: listeners at many ports, and one port with a listener at each of many addresses of loopback. Verdict: none
    of the first is read, and few of the others, which are taken for an open port then.
    """
    read: list[int] = []
    messages = sock_diag._messages

    def counted(link: socket.socket) -> Iterator[bytes]:
        for message in messages(link):
            read.append(1)
            yield message

    monkeypatch.setattr(sock_diag, "_messages", counted)
    monkeypatch.setattr(sock_diag, "MOST_LISTENING", 5)
    with contextlib.ExitStack() as stack, netns.inside(namespace):
        for number in range(1, 21):
            stack.enter_context(socket.create_server(("127.0.0.1", 9000 + number)))
            stack.enter_context(socket.create_server((f"127.0.1.{number}", 8000)))
        assert sock_diag.listening(namespace, {7000}) == set()
        assert read == []
        assert sock_diag.listening(namespace, {8000, 9001}) == {8000}
        assert len(read) == 1 + 6


def test_a_socket_is_closed_from_outside(namespace: int) -> None:
    """Input: a connection, closed twice. Verdict: its client's error is ECONNABORTED; the second
    time nothing was there.
    """
    with connected(namespace, socket.AF_INET) as (client, _):
        ends = ends_of(client)
        assert sock_diag.destroy(namespace, ends, ANY_COOKIE)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        assert ends not in by_pyroute2(namespace)
        assert not sock_diag.destroy(namespace, ends, ANY_COOKIE)
