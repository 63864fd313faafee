"""The addresses of this process's network namespace, as the kernel has them, and when they change.

rtnetlink(7) by a socket of Python's own, two messages: pyroute2 would bring 8.6 MB into control.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.vocabulary import Address

_GROUPS: Final = 0x10 | 0x100
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)."""
_NEWADDR: Final = 20
_GETADDR: Final = 22
_DONE: Final = 3
_ERROR: Final = 2
_REQUEST_DUMP: Final = 0x1 | 0x300
_HEADER: Final = struct.Struct("=IHHII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_SCOPE_HOST: Final = 254
"""rt_scope_t: loopback addresses; pods have the same."""
_BUFFER: Final = 1 << 18


def own_addresses() -> frozenset[Address]:
    """Return every address of the calling thread's network namespace that others can meet: not those
    of loopback, nor IPv6's link-local ones, which a pod may give itself. Raises KernelError.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
            asked.settimeout(5)
            body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            asked.send(_HEADER.pack(_HEADER.size + len(body), _GETADDR, _REQUEST_DUMP, 1, 0) + body)
            return frozenset(_dumped(asked))
    except OSError as error:
        raise KernelError(f"rtnetlink: the node's own addresses cannot be read: {error.strerror or error}") from None


def watch() -> socket.socket:
    """Return a non-blocking socket that becomes readable when an address comes or goes; :func:`drain`
    makes it wait for the next. Raises KernelError.
    """
    try:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        watching = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        watching.bind((0, _GROUPS))
    except OSError as error:
        raise KernelError(f"rtnetlink: changes of addresses cannot be followed: {error.strerror}") from None
    return watching


def drain(watching: socket.socket) -> None:
    """Take what waits at *watching*; what was lost for want of room (ENOBUFS) is a change too."""
    while True:
        try:
            watching.recv(_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != getattr(os, "ENOBUFS", 105):
                return


def _dumped(asked: socket.socket) -> Iterator[Address]:
    while True:
        data = asked.recv(_BUFFER)
        for kind, body in messages(data):
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "the dump was refused")
            if kind == _NEWADDR and (found := address_in(body)) is not None:
                yield found


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of each netlink message of *data* (netlink(7))."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def address_in(body: bytes) -> Address | None:
    """Return the address that the RTM_NEWADDR *body* tells; None for one that is no node's to others."""
    _, _, _, scope, _ = _ADDRESS.unpack_from(body)
    attributes: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    # Of a point-to-point link IFA_ADDRESS is the other end's.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b""
    if scope >= _SCOPE_HOST or len(packed) not in (4, 16):
        return None
    found: IPv4Address | IPv6Address = ip_address(packed)
    local = found.version == 6 and found.is_link_local
    return None if local or found.is_loopback else Address(str(found))
