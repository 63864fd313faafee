"""What enrolling a pod means, as values: the map entries and the listeners that it must have.
Decides nothing else, and opens sockets only.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.errors import KernelError, PodDoingError
from nodeagent.mesh.protection import OPEN, Protection
from nodeagent.redirect import layout, netns
from nodeagent.vocabulary import Direction, Family, family_of

ListenerId = tuple[Direction, Family, int]
"""Direction, address family and slot: each worker slot has a listener of its own (SO_REUSEPORT)."""

DIRECTIONS: Final[Mapping[Direction, int]] = {"outbound": layout.OUTBOUND, "inbound": layout.INBOUND}
FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_DOMAIN: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
BACKLOG: Final = 4096
QUIET_SECONDS: Final = 180
"""After which the kernel asks whether the other end is there."""
PROBE_SECONDS: Final = 15
"""Between two such questions; the kernel asks nine times (net.ipv4.tcp_keepalive_probes)."""

Entries = dict[str, dict[bytes, bytes]]
"""Map name -> key -> value, in the order in which they are put."""


@dataclass(frozen=True, slots=True)
class EnrolledPod:
    """A pod whose traffic is captured. ``addresses``: canonical text, IPv4 and IPv6; ports in 1..65535."""

    uid: str
    netns: netns.PodNetns
    addresses: tuple[str, ...]
    protection: Protection = OPEN
    exclude_inbound: frozenset[int] = frozenset()
    exclude_outbound: frozenset[int] = frozenset()
    probed: frozenset[int] = frozenset()
    """Ports at which a TCP probe asks."""
    bypass: bool = False
    """It asks for the socket bypass."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """A pod's listening sockets, non-blocking, opened in its network namespace; a family that the
    pod lacks has none.
    """

    fds: dict[ListenerId, socket.socket] = field(default_factory=dict)

    def close(self) -> None:
        for listener in self.fds.values():
            listener.close()


def entries(pod: EnrolledPod, number: int) -> Entries:
    """Return every map entry of *pod*, whose number on this node is *number*; "pods", which begins
    the outbound capture, comes last.

    Raises OSError for a bad address.
    """
    cookie = pod.netns.cookie
    own = {family_of(address): layout.pack_address(address) for address in reversed(pod.addresses)}
    protection = pod.protection
    value = layout.PodValue(protection=_flags(protection.dead, protection.unredirected), id=number, bypass=pod.bypass)
    value.ipv4[:] = own.get(4, bytes(layout.ADDRESS_BYTES))
    value.ipv6[:] = own.get(6, bytes(layout.ADDRESS_BYTES))
    excluded = [(layout.OUTBOUND, port) for port in pod.exclude_outbound]
    excluded += [(layout.INBOUND, port) for port in pod.exclude_inbound]
    netns_key = struct.pack("=Q", cookie)
    return {
        "addresses": {layout.pack_address(address): netns_key for address in pod.addresses},
        "exclusions": {
            bytes(layout.PortKey(cookie, direction, port)): struct.pack("=I", 1) for direction, port in excluded
        },
        "port_modes": {
            bytes(layout.PortKey(cookie, layout.INBOUND, port)): struct.pack("=I", flags)
            for port, flags in _port_flags(protection)
        },
        "pods": {netns_key: bytes(value)},
    }


def _port_flags(protection: Protection) -> list[tuple[int, int]]:
    """Return enum protection of the ports at which it is not the pod's."""
    flags = {port: _flags(dead) for port, dead in protection.ports}
    for port in protection.probed:
        flags[port] = flags.get(port, _flags(protection.dead)) | layout.PROBED
    return sorted(flags.items())


def _flags(dead: bool, unredirected: bool = False) -> int:
    """Return enum protection."""
    flags = layout.REFUSE_DEAD if dead else 0
    if unredirected:
        flags |= layout.REFUSE_UNREDIRECTED
    return flags


def listener_key(cookie: int, direction: Direction, family: Family) -> bytes:
    return bytes(layout.ListenerKey(cookie, DIRECTIONS[direction], family))


def listener_ids(slots: int) -> list[ListenerId]:
    """Every listener that a pod should have; slot 0 is the one that BPF knows."""
    return list(itertools.product(DIRECTIONS, FAMILIES, range(slots)))


def open_listeners(
    pod: EnrolledPod, ids: Iterable[ListenerId], ports: Mapping[Direction, int]
) -> dict[ListenerId, socket.socket]:
    """Open the listeners *ids* inside the pod. Raises KernelError, and then leaves none behind;
    PodDoingError where it is the pod that leaves no room for them.

    A pod without IPv6 addresses may have IPv6 switched off, even on lo: it gets no ::1 listener,
    and the connect program treats what it would have redirected there as it does when the daemon is
    dead.
    """
    families = {family_of(address) for address in pod.addresses}
    opened: dict[ListenerId, socket.socket] = {}
    try:
        with netns.inside(pod.netns.fd):
            for direction, family, slot in ids:
                try:
                    opened[direction, family, slot] = _listen(family, ports[direction])
                except OSError as error:
                    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and family not in families:
                        continue
                    kind = PodDoingError if error.errno in _OF_THE_POD else KernelError
                    raise kind(_explain(pod, family, ports[direction], error)) from None
    except OSError as error:
        raise KernelError(
            f"pod {pod.uid}: {pod.netns.path}: the network namespace cannot be entered: {error.strerror}"
        ) from None
    except KernelError:
        Listeners(opened).close()
        raise
    return opened


_OF_THE_POD: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def _explain(pod: EnrolledPod, family: Family, port: int, error: OSError) -> str:
    cause = {
        errno.EADDRINUSE: f"a process in the pod listens on port {port}, which is the agent's",
        errno.EADDRNOTAVAIL: "is the pod's lo interface up?",
    }.get(error.errno or 0, error.strerror)
    return f"pod {pod.uid}: cannot listen on {_LOOPBACK[family]} port {port} in {pod.netns.path}: {cause}"


def _listen(family: Family, port: int) -> socket.socket:
    listener = socket.socket(_DOMAIN[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _notice_vanished(listener)  # of what it accepts
        if family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((_LOOPBACK[family], port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _notice_vanished(of: socket.socket) -> None:
    """Have the kernel end *of* some minutes after the other end is gone without a word: a pod's network is taken
    away before what is kept open in it has said that it ends. Raises OSError.
    """
    of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET_SECONDS)
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)


def is_listening(listener: socket.socket) -> bool:
    """Ask the kernel; False too when the socket was closed behind our back."""
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


_SO_COOKIE: Final = 57
"""asm-generic/socket.h; not in Python's socket module."""


def socket_cookie(of: socket.socket) -> bytes:
    """Return the socket's cookie as a sockhash gives it to user space. Raises OSError."""
    return of.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, ctypes.sizeof(ctypes.c_uint64))


def open_sockets(uid: str, network: int, family: Family, count: int) -> list[socket.socket]:
    """Make *count* unconnected, non-blocking TCP sockets inside the pod *uid*, whose network
    namespace is open as *network*. Raises KernelError.
    """
    made: list[socket.socket] = []
    try:
        with netns.inside(network):
            while len(made) < count:
                made.append(socket.socket(_DOMAIN[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                _notice_vanished(made[-1])
    except OSError as error:
        for one in made:
            one.close()
        raise KernelError(f"pod {uid}: no socket could be made in its network namespace: {error.strerror}") from None
    return made
