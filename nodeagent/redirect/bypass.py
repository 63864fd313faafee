"""The socket bypass as the daemon sees it: put in place by the loader, joined by sockops, counted here.

TCP's own counters do not see what goes past TCP. A socket's bytes are read here while it lives; when it closes, sockops
gets them from ``bypass_leave`` in bpf/bypass.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.errors import KernelError
from nodeagent.redirect import hooks, syscall
from nodeagent.redirect.bypass_layout import WAYS, BypassSide, BypassStream
from nodeagent.redirect.layout import unpack_address
from nodeagent.redirect.maps import Map


@dataclass(frozen=True, slots=True)
class Side:
    """A socket by its own address and port, and its peer's."""

    local: tuple[str, int]
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Stream:
    """What a socket has sent past TCP; ``way``: "socket" past TCP, "tcp" by TCP, "undecided" before it sends."""

    way: str
    sent_bytes: int
    messages: int


def install(maps: Mapping[str, Map], programs: Mapping[str, int]) -> None:
    """Give the sockhash its program; sockets that are in it keep theirs. For the loader. Raises KernelError."""
    hook = hooks.BYPASS_MESSAGE
    try:
        syscall.program_attach(programs[hook.name], maps["bypass_sockets"].fd, hook.attach_type)
    except OSError as error:
        raise KernelError(f"{hook.name} cannot be attached to the map bypass_sockets: {error.strerror}") from None


def streams(maps: Mapping[str, Map]) -> dict[Side, Stream]:
    """Return every socket that takes part in the bypass. Raises OSError."""
    return dict(_stream(key, value) for key, value in maps["bypass_streams"].items())


def _stream(key: bytes, value: bytes) -> tuple[Side, Stream]:
    side, stream = BypassSide.from_buffer_copy(key), BypassStream.from_buffer_copy(value)
    local, remote = (unpack_address(bytes(address)) for address in (side.local, side.remote))
    return Side((local, side.local_port), (remote, side.remote_port)), Stream(WAYS[stream.way], stream.bytes, stream.messages)
