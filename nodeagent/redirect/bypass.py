"""The socket bypass as the daemon sees it: allowed or refused here, put in place by the loader,
joined by sockops, counted here.

A pod's author asks for it; the node decides. `proven`: sockets are joined where no trial of
transparency.py tells joined ones from others, which is a property of the kernel. `asked`: the
author's word is taken that the pod's applications do nothing of what would tell. Both refuse where
nothing would bound what a receiver leaves unread.

TCP's own counters do not see what goes past TCP. A socket's bytes are read here while it lives;
when it closes, sockops gets them from ``bypass_leave`` in bpf/bypass.c.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.errors import KernelError
from nodeagent.redirect import btf, hooks, syscall, transparency
from nodeagent.redirect.bypass_layout import WAYS, BypassSide, BypassStream
from nodeagent.redirect.layout import unpack_address
from nodeagent.redirect.maps import Map

log = logging.getLogger("nodeagent.redirect")
_TRIED: Final = 1000


@dataclass(frozen=True, slots=True)
class SocketEnds:
    """A socket by its own address and port, and its peer's."""

    local: tuple[str, int]
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class BypassedStream:
    """What a socket has sent past TCP; ``way``: "socket" past TCP, "tcp" by TCP, "undecided" before it sends."""

    way: str
    sent_bytes: int
    messages: int


@dataclass(frozen=True, slots=True)
class Joining:
    """Whether sockets are joined on this node: at which bytes the kernel's struct sock has what
    bpf/bypass.c reads, or why they are not.
    """

    unread: int = 0
    """sk_rmem_alloc: what the receiver has not read."""
    written: int = 0
    """write_seq: grows with what TCP is given to send."""
    refusal: str = ""
    """In words; empty: they are joined."""


def attach(sockets: Map, program: int) -> None:
    """Give the sockhash its *program*; sockets that are in it keep theirs. Raises KernelError."""
    try:
        syscall.program_attach(program, sockets.fd, hooks.BYPASS_MESSAGE.attach_type)
    except OSError as error:
        raise KernelError(
            f"{hooks.BYPASS_MESSAGE.name} cannot be attached to the map {sockets.spec.name}: {error.strerror}"
        ) from None


def joining(setting: Literal["proven", "asked"]) -> Joining:
    """Say whether sockets of pods that ask for it may be joined here, by ``redirect.bypass``: see Joining."""
    try:
        found = "; ".join(transparency.differences())
        if found and setting == "proven":
            return Joining(
                refusal=f"applications could tell on this kernel: {found} "
                "(redirect.bypass: asked joins them all the same)"
            )
        places = struct_places()
    except (KernelError, OSError) as error:
        return Joining(refusal=f"it cannot be had on this kernel: {error}")
    if found:
        log.warning(
            "sockets of pods that ask for nodeagent.io/bypass are joined on their word (redirect.bypass: asked): %s",
            found,
        )
    return places


def struct_places() -> Joining:
    """Return where the kernel keeps what bounds a receiver's queue and what tells whether TCP was
    given bytes.

    Tried on two sockets: older kernels do not count what came past TCP. Raises KernelError where it
    cannot be counted or read: no socket may be joined there.
    """
    try:
        with transparency.pair() as pair:
            pair.join(pair.receiver, pair.sender)
            pair.sender.sendall(bytes(_TRIED))
            unread = pair.unread()
    except OSError as error:
        raise KernelError(f"what goes past TCP cannot be tried: {error.strerror or error}") from None
    if unread < _TRIED:
        raise KernelError(
            f"this kernel counts {unread} of {_TRIED} bytes that came past TCP as unread, so a receiver that does "
            "not read could be flooded"
        )
    return Joining(btf.offset("sock", "sk_backlog", "rmem_alloc"), btf.offset("tcp_sock", "write_seq"))


def streams(maps: Mapping[str, Map]) -> dict[SocketEnds, BypassedStream]:
    """Return every socket that takes part in the bypass. Raises OSError."""
    return dict(_stream(key, value) for key, value in maps["bypass_streams"].items())


def _stream(key: bytes, value: bytes) -> tuple[SocketEnds, BypassedStream]:
    side = BypassSide.from_buffer_copy(key)
    stream = BypassStream.from_buffer_copy(value)
    local, remote = (unpack_address(bytes(address)) for address in (side.local, side.remote))
    return SocketEnds((local, side.local_port), (remote, side.remote_port)), BypassedStream(
        WAYS[stream.way], stream.bytes, stream.messages
    )
