"""The kernel path's records, beside sockets that bear the addresses and ports of another connection,
their pod's own or somebody else's: such a socket makes, changes and ends no record.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from nodeagent.redirect import netns
from nodeagent.redirect.delivery import Announcements
from nodeagent.redirect.kernel_record import RecordedFlow, Total
from tests.bpf.test_kernel_path import KINDS, Path, _any, _until_reset, path  # noqa: F401  (a fixture)
from tests.bpf.world import Child, Pod, ip
from tests.waiting import eventually

PORT, SOURCE_PORT = 8500, 40500
NOBODY = 65534
ASIDE = "aside"
"""A second device of a's, which leads nowhere."""
IP_TRANSPARENT, IPV6_TRANSPARENT, IPV6_FREEBIND = 19, 75, 78
"""linux/in.h, linux/in6.h; not in Python's socket module."""


def _lead_nowhere(pod: Pod, device: str, *destinations: str) -> None:
    """Give *pod* a *device* where packets to *destinations* vanish, whoever binds to it."""
    ip(pod.fd, f"link add {device} type veth peer name nowhere")
    for link in ("lo", device, "nowhere"):
        ip(pod.fd, f"link set {link} up")
    for address in destinations:
        ip(pod.fd, f"neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev {device}")
    for network in ("10.77.0.0/24", "fd77::/64"):
        ip(pod.fd, f"route add {network} dev {device} metric 9999")


def _give(pod: Pod, device: str, *addresses: str) -> None:
    for address in addresses:
        ip(pod.fd, f"addr add {address} dev {device}" + " nodad" * (":" in address))


@pytest.fixture
def c(b: Pod) -> Iterator[Pod]:
    """A third pod, whose device leads nowhere."""
    made = Pod(netns.create(), "10.77.0.3", "fd77::3")
    _lead_nowhere(made, "eth0", *b.addresses)
    _give(made, "eth0", *made.addresses)
    yield made
    os.close(made.fd)


def _named(source: str, device: str, privileged: bool) -> socket.socket:
    """Return a socket that is bound to SOURCE_PORT of *source*, whosever that is, and to *device*
    (empty: none). IPv6 lets everybody bind a foreign address, IPv4 connects from one with privileges.
    """
    ipv6 = ":" in source
    if not privileged:
        os.setuid(NOBODY)
    made = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if ipv6:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    if privileged:
        level, option = (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if ipv6 else (socket.IPPROTO_IP, IP_TRANSPARENT)
        made.setsockopt(level, option, 1)
    made.bind((source, SOURCE_PORT))
    return made


def _connect(pipe: Connection, source: str, device: str, destination: str) -> int:
    """Connect as nobody; return the error by which the connection ends."""
    with _named(source, device, privileged=False) as connection:
        connection.settimeout(60)
        connection.connect((destination, PORT))
        pipe.send("connected")
        try:
            connection.recv(1)
        except OSError as error:
            return error.errno or 0
        return 0


def _claim(pipe: Connection, source: str, device: str, destination: str, privileged: bool, announced: int = 0) -> None:
    """Begin to connect, *announced* as a worker does, and close when the test says so."""
    with _named(source, device, privileged) as connection:
        if announced:
            Announcements(announced).put(connection, source)
        connection.setblocking(False)
        assert connection.connect_ex((destination, PORT)) == errno.EINPROGRESS
        pipe.send("begun")
        pipe.recv()
    pipe.send("closed")


def _serve(pipe: Connection, address: str) -> int:
    """Return the error by which the one connection ends that comes to PORT."""
    return _until_reset(pipe, address, PORT)


class Rig:
    """The kernel path from a to b, and what both do."""

    def __init__(self, path: Path, kind: str) -> None:  # noqa: F811
        self.path, self.kind = path, kind
        self.source, self.destination = path.a.address(kind), path.b.address(kind)

    def serve(self, bypass: bool = False) -> Child:
        server = self.path.node.stage.start(self.path.b, _serve, _any(self.kind))
        server.receive()
        self.path.put(None, PORT, bypass=bypass)
        return server

    def connect(self) -> Child:
        client = self.path.node.stage.start(self.path.a, _connect, self.source, "eth0", self.destination)
        assert client.receive() == "connected"
        return client

    def claim(self, pod: Pod, source: str, device: str = "", announced: int = 0, cgroup: str = "pod") -> Child:
        """Begin to connect to b from *pod* under the address *source*; IPv6 needs no privilege for it."""
        privileged = self.kind != "6" or bool(announced)
        arguments = (source, device, self.destination, privileged, announced)
        child = self.path.node.stage.start(pod, _claim, *arguments, cgroup=cgroup)
        assert child.receive() == "begun"
        return child

    def flow(self) -> RecordedFlow:
        (flow,) = self.path.node.plane.kernel.record.flows()
        return flow

    def closes(self, client: Child, server: Child) -> None:
        """What policy refuses now is closed: both ends hear of it, and nothing remains."""
        assert self.path.node.plane.close_flow(self.flow())
        assert client.receive() in (errno.ECONNABORTED, errno.ECONNRESET)
        assert server.receive() in (errno.ECONNABORTED, errno.ECONNRESET)
        self.nothing_left()

    def nothing_left(self) -> None:
        eventually(lambda: self.path.node.plane.statistics().maps["kernel_flows"][0] == 0)


@pytest.fixture(params=KINDS)
def rig(path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:  # noqa: F811
    _lead_nowhere(path.a, ASIDE, *path.b.addresses)
    yield Rig(path, request.param)
    ip(path.a.fd, f"link del {ASIDE}")


def close(claim: Child) -> None:
    claim.send("close")
    assert claim.receive() == "closed"


@pytest.mark.parametrize("bypass", [False, True])
def test_a_second_socket_with_a_live_ones_ends(rig: Rig, bypass: bool) -> None:
    """Input: a connection through eth0, then a socket with the same ends that is bound to another device begins
    to connect, and closes. Verdict: the record, the bytes past TCP and the numbers stay the
    first one's, which can be closed.
    """
    server = rig.serve(bypass)
    client = rig.connect()
    eventually(lambda: rig.flow().server)
    before, joined = rig.flow(), len(rig.path.node.plane.bypassed())
    assert bool(joined) == bypass
    claim = rig.claim(rig.path.a, rig.source, ASIDE)
    assert rig.flow() == before
    close(claim)
    assert rig.flow() == before
    assert len(rig.path.node.plane.bypassed()) == joined
    assert rig.path.total(PORT) == Total(opened=1)
    rig.closes(client, server)
    assert rig.path.total(PORT).closed == 1


def test_a_second_socket_with_a_waiting_ones_ends(rig: Rig) -> None:
    """Input: a socket that is bound to another device waits for an answer; one with the same ends, through eth0,
    gets it. Verdict: the record is of the one that is connected.
    """
    server = rig.serve()
    claim = rig.claim(rig.path.a, rig.source, ASIDE)
    waiting = rig.flow()
    client = rig.connect()
    eventually(lambda: rig.flow().server)
    assert rig.flow().client != waiting.client
    assert rig.flow().opened
    close(claim)
    rig.closes(client, server)


def test_a_live_connection_of_another_pods(rig: Rig, c: Pod) -> None:
    """Input: a connection of a's; c, which may reach b too, begins one under a's address and port.
    Verdict: the record stays a's, and the connection can be closed.
    """
    server = rig.serve()
    client = rig.connect()
    eventually(lambda: rig.flow().server)
    before = rig.flow()
    rig.path.node.enroll(c, "c")
    claim = rig.claim(c, rig.source)
    assert rig.flow() == before
    close(claim)
    assert rig.flow() == before
    assert rig.path.total(PORT) == Total(opened=1)
    rig.closes(client, server)


def test_an_address_that_is_not_the_pods(rig: Rig, c: Pod) -> None:
    """Input: c begins a connection under an address of another node. Verdict: no record, by which
    that one's own connections would be taken for c's.
    """
    rig.serve()
    rig.path.node.enroll(c, "c")
    remote = {"4": "10.77.0.9", "6": "fd77::9", "mapped": "::ffff:10.77.0.9"}[rig.kind]
    claim = rig.claim(c, remote)
    assert rig.path.node.plane.kernel.record.flows() == []
    close(claim)
    rig.nothing_left()


def test_what_an_earlier_owner_of_the_address_left(rig: Rig, c: Pod) -> None:
    """Input: a begins a connection; then its addresses are given to c, which begins the same.
    Verdict: the record is c's.
    """
    rig.path.put(None, PORT)
    claim = rig.claim(rig.path.a, rig.source, ASIDE)
    before = rig.flow()
    _give(c, "eth0", *rig.path.a.addresses)
    c.ipv4, c.ipv6 = rig.path.a.addresses
    rig.path.node.enroll(c, "c")
    other = rig.claim(c, rig.source)
    assert rig.flow().client != before.client
    assert rig.flow().source != before.source
    close(claim)
    assert rig.flow().source != before.source
    close(other)
    rig.nothing_left()


@pytest.mark.parametrize("delivery", [False, True])
def test_a_connection_that_is_accepted_elsewhere(rig: Rig, c: Pod, delivery: bool) -> None:
    """Input: c has given itself the addresses of both; while a (or a worker on its behalf) waits for
    b's answer, c accepts a connection with the same ends. Verdict: it is not taken for b's end.
    """
    node = rig.path.node
    rig.path.put(None, PORT)
    announced = node.plane.announced_map_fd if delivery else 0
    claim = rig.claim(rig.path.a, rig.source, ASIDE, announced, cgroup="agent" if delivery else "pod")
    _give(c, "lo", *rig.path.a.addresses, *rig.path.b.addresses)
    node.enroll(c, "c", bypass=True)
    node.stage.start(c, _serve, _any(rig.kind)).receive()
    client = node.stage.start(c, _connect, rig.source, "", rig.destination)
    assert client.receive() == "connected"
    if delivery:
        assert len(node.plane._maps["deliveries"].items()) == 1
    else:
        assert not rig.flow().server
    close(claim)
    rig.nothing_left()
