"""The pod that the sidecar is in: who it says it is (the downward API), and its sockets, which are
this process's own.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nodeagent import istio
from nodeagent.errors import ConfigError
from nodeagent.proxy.pods import PodState, SocketStock
from nodeagent.proxy.transport import Transport
from nodeagent.redirect.original import Original
from nodeagent.vocabulary import Address, Direction, Family, PodUid

_SO_ORIGINAL_DST: Final = 80
"""Also IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h)."""
_IP_BIND_ADDRESS_NO_PORT: Final = 24


@dataclass(frozen=True, slots=True)
class Pod:
    """What the environment says of the pod."""

    name: str
    namespace: str
    uid: PodUid
    addresses: tuple[Address, ...]
    node: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Pod:
        """Read POD_NAME, POD_NAMESPACE, POD_UID, POD_IPS and NODE_NAME. Raises ConfigError that names the variable."""
        name, namespace, uid, addresses, node = (
            _variable(environment, key) for key in ("POD_NAME", "POD_NAMESPACE", "POD_UID", "POD_IPS", "NODE_NAME")
        )
        return cls(
            name,
            namespace,
            PodUid(uid),
            tuple(_address(part.strip()) for part in addresses.split(",") if part.strip()),
            node,
        )


def _variable(environment: Mapping[str, str], key: str) -> str:
    value = environment.get(key, "").strip()
    if not value:
        raise ConfigError(
            f"environment: {key}: is not set: the pod's spec gives it by the downward API (valueFrom.fieldRef)"
        )
    return value


def _address(text: str) -> Address:
    try:
        return Address(str(ip_address(text)))
    except ValueError:
        raise ConfigError(
            f"environment: POD_IPS: {text!r:.80}: IPv4 and IPv6 addresses, separated by commas, are allowed"
        ) from None


class LocalSockets(SocketStock):
    """The stock of a pod whose network namespace is this process's own: a socket is made when it is
    wanted, bound to *source* if there is one.
    """

    def __init__(self, family: Family, source: str = "") -> None:
        super().__init__(lambda count: None)
        self._family = family
        self._source = source

    async def take(self) -> socket.socket:
        """Return an unconnected, non-blocking socket. Raises OSError."""
        made = socket.socket(
            socket.AF_INET if self._family == 4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        )
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._source:
                # The port is chosen at connect, when it need only be free for that destination
                # (ip(7)).
                made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                made.bind((self._source, 0))
        except OSError:
            made.close()
            raise
        return made


def pod_state(uid: PodUid, source: Mapping[Family, str]) -> PodState:
    """Return a PodState that dials from *source* by address family, or from any address of the pod."""
    state = PodState(uid, 0, "", lambda family, count: None)
    state.stock = {4: LocalSockets(4, source.get(4, "")), 6: LocalSockets(6, source.get(6, ""))}
    return state


class Redirected:
    """By iptables' REDIRECT: connection tracking knows the destination before it was changed.

    Who dials the sidecar's own ports was not redirected: what it asked for would lead here again,
    and so on for ever. Nor may *addresses*, the pod's own, be left for others inbound: whoever can
    send packets here could have them sent on.
    """

    def __init__(self, addresses: tuple[Address, ...]) -> None:
        self._own = frozenset(addresses)

    def of(self, transport: Transport, pod: PodState, direction: Direction) -> Original | None:
        address, port = original_destination(transport.get_extra_info("socket"))
        if direction == "inbound":
            return (
                Original(address, port, None)
                if address in self._own and port not in (istio.OUTBOUND_PORT, istio.INBOUND_PORT)
                else None
            )
        here = address in self._own or address in ("127.0.0.1", "::1", "")
        return None if here and port in (0, istio.OUTBOUND_PORT, istio.INBOUND_PORT) else Original(address, port, None)


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """Return the address and port that the redirected *connection* asked for; ("", 0) when it was
    not redirected, or is gone already.
    """
    try:
        if connection.family == socket.AF_INET:
            found = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)  # struct sockaddr_in
            return socket.inet_ntop(socket.AF_INET, found[4:8]), struct.unpack_from("!H", found, 2)[0]
        found = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)  # struct sockaddr_in6
        return socket.inet_ntop(socket.AF_INET6, found[8:24]), struct.unpack_from("!H", found, 2)[0]
    except OSError:
        return "", 0


def listeners(port: int) -> list[socket.socket]:
    """Listen on *port* of every address of the pod, IPv4 and, where the pod has it, IPv6. Raises ConfigError."""
    opened: list[socket.socket] = []
    for domain, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            made = socket.socket(domain, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            opened.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if domain == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((host, port))
        except OSError as error:
            if domain == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            for each in opened:
                each.close()
            raise ConfigError(
                f"port {port} of {host}: {error.strerror}: does another sidecar run in this pod?"
            ) from None
    return opened
