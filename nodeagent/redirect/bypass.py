"""The socket bypass as the daemon sees it: put in place by the loader, joined by sockops, counted here.

TCP's own counters do not see what goes past TCP. A socket's bytes are read here while it lives; when it closes, sockops
gets them from ``bypass_leave`` in bpf/bypass.c.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import btf, hooks, syscall
from nodeagent.redirect.bypass_layout import WAYS, BypassSide, BypassStream
from nodeagent.redirect.layout import unpack_address
from nodeagent.redirect.maps import SOCKHASH, Map

_SO_MEMINFO: Final = 55
"""asm-generic/socket.h; the first of its words is sk_rmem_alloc: the bytes that a socket has not read."""
_TRIED: Final = 1000
_PATIENCE_SECONDS: Final = 1.0


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


def unread_offset() -> int:
    """Return at which byte struct sock counts what a receiver has not read, which bounds what is sent past TCP.

    Tried on two sockets: older kernels do not count what came past TCP. Raises KernelError where it cannot be counted or read: no socket may be joined there.
    """
    try:
        _try_counting()
    except OSError as error:
        raise KernelError(f"what goes past TCP cannot be tried: {error.strerror or error}") from None
    return btf.offset("sock", "sk_backlog", "rmem_alloc")


def _try_counting() -> None:
    with contextlib.ExitStack() as stack:
        sockets = syscall.map_create(SOCKHASH, "unread", 4, 8, 2, 0)
        stack.callback(os.close, sockets)
        program = syscall.program_load(hooks.BYPASS_MESSAGE.program_type, hooks.BYPASS_MESSAGE.attach_type, _to_first(sockets))
        stack.callback(os.close, program)
        syscall.program_attach(program, sockets, hooks.BYPASS_MESSAGE.attach_type)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=_PATIENCE_SECONDS))
        receiver = stack.enter_context(listener.accept()[0])
        for key, one in enumerate((receiver, sender)):
            syscall.map_update(sockets, struct.pack("=I", key), struct.pack("=Q", one.fileno()))
        sender.sendall(bytes(_TRIED))
        unread = struct.unpack_from("=I", receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0]
        if unread < _TRIED:
            raise KernelError(f"this kernel counts {unread} of {_TRIED} bytes that came past TCP as unread")


def _to_first(sockets: int) -> bytes:
    """Return a program that sends every message to the socket with key 0 (include/uapi/linux/bpf.h: struct bpf_insn).

    It also reads kernel memory, as bpf/bypass.c does: a kernel that is locked down refuses such a program.
    """
    instructions = (
        (0xBF, 0x16, 0, 0),  # r6 = r1
        (0xBF, 0xA1, 0, 0), (0x07, 1, 0, -8), (0xB7, 2, 0, 4), (0xB7, 3, 0, 0),  # r1 = r10 - 8, r2 = 4, r3 = 0
        (0x85, 0, 0, 113),  # bpf_probe_read_kernel(r1, r2, r3)
        (0xBF, 0x61, 0, 0),  # r1 = r6
        (0x62, 10, -4, 0),  # *(u32 *)(r10 - 4) = 0
        (0x18, 0x12, 0, sockets), (0, 0, 0, 0),  # r2 = the map
        (0xBF, 0xA3, 0, 0), (0x07, 3, 0, -4),  # r3 = r10 - 4
        (0xB7, 4, 0, 1),  # r4 = BPF_F_INGRESS
        (0x85, 0, 0, 71),  # r0 = bpf_msg_redirect_hash(r1, r2, r3, r4)
        (0x95, 0, 0, 0),
    )  # fmt: skip
    return b"".join(struct.pack("=BBhi", *one) for one in instructions)


def streams(maps: Mapping[str, Map]) -> dict[Side, Stream]:
    """Return every socket that takes part in the bypass. Raises OSError."""
    return dict(_stream(key, value) for key, value in maps["bypass_streams"].items())


def _stream(key: bytes, value: bytes) -> tuple[Side, Stream]:
    side, stream = BypassSide.from_buffer_copy(key), BypassStream.from_buffer_copy(value)
    local, remote = (unpack_address(bytes(address)) for address in (side.local, side.remote))
    return Side((local, side.local_port), (remote, side.remote_port)), Stream(WAYS[stream.way], stream.bytes, stream.messages)
