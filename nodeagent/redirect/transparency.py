"""Can an application tell that its sockets are joined? Tried on two sockets, before any pod's are.

What comes past TCP lies in a queue of its own (struct sk_psock: ingress_msg), and a joined socket
receives by tcp_bpf_recvmsg() (net/ipv4/tcp_bpf.c). Whatever reads or counts TCP's own queue misses
those bytes, and whatever tcp_bpf_recvmsg() does not do as tcp_recvmsg() does is another thing than
the application was written for. Kernels differ, also in their stable releases, and are still being
mended; so nothing is concluded from version numbers. A trial joins a sender and a receiver and does
what a program does; what it finds is told in the words of that program's system call. No trial
depends on how fast anything is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import hooks, syscall
from nodeagent.redirect.maps import SOCKHASH

_SO_MEMINFO: Final = 55
"""asm-generic/socket.h; the first of its words is sk_rmem_alloc: the bytes that a socket has not read."""
_TCP_ZEROCOPY_RECEIVE: Final = 35
"""linux/tcp.h: a receive by mapping pages."""
_TCP_INQ: Final = 36
"""linux/tcp.h: a receive tells how much is left."""
_PART: Final = 500
_PATIENCE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class JoinablePair:
    """A connection whose sockets can be joined: what a joined *sender* sends goes past TCP to a
    joined *receiver*; the other way is TCP's.
    """

    sender: socket.socket
    receiver: socket.socket
    sockets: int

    def join(self, *which: socket.socket) -> None:
        """Join these of the two. Raises OSError."""
        for one in which:
            key = socket.htonl(one.getsockname()[1]) if one is self.receiver else 0
            syscall.map_update(self.sockets, struct.pack("=I", key), struct.pack("=Q", one.fileno()))

    def unread(self) -> int:
        """Return how many bytes the kernel says the receiver has not read."""
        return int(struct.unpack_from("=I", self.receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])


@contextlib.contextmanager
def pair() -> Iterator[JoinablePair]:
    """Make a connection that is not joined yet. Raises OSError."""
    with contextlib.ExitStack() as stack:
        sockets = syscall.map_create(SOCKHASH, "transparency", 4, 8, 2, 0)
        stack.callback(os.close, sockets)
        program = syscall.program_load(
            hooks.BYPASS_MESSAGE.program_type, hooks.BYPASS_MESSAGE.attach_type, _to_peer(sockets)
        )
        stack.callback(os.close, program)
        syscall.program_attach(program, sockets, hooks.BYPASS_MESSAGE.attach_type)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=_PATIENCE_SECONDS))
        receiver = stack.enter_context(listener.accept()[0])
        # A blocking socket, as the kernel sees it, that does not block for ever: Python's own
        # timeout would make it a non-blocking one.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", int(_PATIENCE_SECONDS), 0))
        yield JoinablePair(sender, receiver, sockets)


def _to_peer(sockets: int) -> bytes:
    """Return a program that sends every message to the socket whose key is the peer's port, and by
    TCP where there is none.

    Source: include/uapi/linux/bpf.h, struct bpf_insn and sk_msg_md. It also reads kernel memory, as
    bpf/bypass.c does: a kernel that is locked down refuses such a program.
    """
    instructions = (
        (0xBF, 0x16, 0, 0),  # r6 = r1
        (0xBF, 0xA1, 0, 0), (0x07, 1, 0, -8), (0xB7, 2, 0, 4), (0xB7, 3, 0, 0),  # r1 = r10 - 8, r2 = 4, r3 = 0
        (0x85, 0, 0, 113),  # bpf_probe_read_kernel(r1, r2, r3)
        (0xBF, 0x61, 0, 0),  # r1 = r6
        (0x61, 0x12, 60, 0), (0x63, 0x2A, -4, 0),  # *(u32 *)(r10 - 4) = r1->remote_port
        (0x18, 0x12, 0, sockets), (0, 0, 0, 0),  # r2 = the map
        (0xBF, 0xA3, 0, 0), (0x07, 3, 0, -4),  # r3 = r10 - 4
        (0xB7, 4, 0, 1),  # r4 = BPF_F_INGRESS
        (0x85, 0, 0, 71),  # bpf_msg_redirect_hash(r1, r2, r3, r4)
        (0xB7, 0, 0, 1), (0x95, 0, 0, 0),  # return SK_PASS
    )  # fmt: skip
    return b"".join(struct.pack("=BBhi", *one) for one in instructions)


def differences() -> list[str]:
    """Return in words what applications could tell on this kernel; nothing where joined sockets are
    like others.

    Raises OSError, KernelError where that cannot be tried.
    """
    found = []
    for trial in TRIALS:
        with pair() as made:
            if said := trial(made):
                found.append(said)
    return found


# -- the trials: each returns what differs from TCP, or nothing --


def _fionread(made: JoinablePair) -> str:
    """nginx reads an upload's rest by what FIONREAD says; .NET and Java's available() ask it too."""
    made.join(made.receiver)
    made.sender.sendall(bytes(_PART))
    if not _readable(made):
        return "what comes by TCP wakes nobody"
    by_tcp = _waiting(made.receiver)
    made.join(made.sender)
    made.sender.sendall(bytes(_PART))
    past = _waiting(made.receiver) - by_tcp
    return (
        ""
        if by_tcp == past == _PART
        else f"FIONREAD counts {by_tcp} of {_PART} bytes that came by TCP, {past} of {_PART} past it"
    )


def _readable(made: JoinablePair) -> bool:
    """What comes by TCP may take a moment."""
    return bool(_polled(made.receiver, select.POLLIN))


def _polled(one: socket.socket, events: int, seconds: float = _PATIENCE_SECONDS) -> int:
    """Return which of *events* there are within *seconds*. poll() and not select(): a control that
    succeeds another has many descriptors already.
    """
    poll = select.poll()
    poll.register(one, events)
    return next((found for _, found in poll.poll(seconds * 1000)), 0)


def _waiting(one: socket.socket) -> int:
    return int(struct.unpack("=i", fcntl.ioctl(one, termios.FIONREAD, bytes(4)))[0])


def _splice(made: JoinablePair) -> str:
    """HAProxy and Go's io.Copy move bytes from socket to socket so."""
    made.join(made.receiver, made.sender)
    made.sender.sendall(bytes(_PART))
    _readable(made)
    made.receiver.setblocking(False)
    read, write = os.pipe()
    try:
        moved = os.splice(made.receiver.fileno(), write, 2 * _PART)
    except BlockingIOError:
        moved = 0
    finally:
        os.close(read)
        os.close(write)
    return "" if moved == _PART else f"splice moves {moved} of {_PART} bytes"


def _low_water(made: JoinablePair) -> str:
    made.join(made.receiver, made.sender)
    made.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2 * _PART)
    made.sender.sendall(bytes(_PART))
    early = _polled(made.receiver, select.POLLIN, 0)
    made.sender.sendall(bytes(_PART))
    return "" if _readable(made) and not early else "SO_RCVLOWAT is ignored"


def _wait_for_all(made: JoinablePair) -> str:
    made.join(made.receiver, made.sender)
    made.sender.sendall(bytes(_PART))
    with _receiving(made, 2 * _PART, socket.MSG_WAITALL) as (received, asleep):
        # The first part has been taken, so whether to wait for the second has been decided. That nothing is unread does
        # not say so alone: there are kernels that count nothing of what came past TCP.
        _until(lambda: not made.unread() and (received.done() or asleep()))
        made.sender.sendall(bytes(_PART))
        return "" if received.result() == 2 * _PART else "MSG_WAITALL does not wait for all"


def _woken_by_a_writer(made: JoinablePair) -> str:
    """Two threads use one blocking socket: the first reads; the second has filled its own send
    buffer, and the peer makes room.
    """
    made.join(made.receiver, made.sender)
    with _receiving(made, 1) as (received, asleep):
        _until(asleep)
        written = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                written += made.receiver.send(bytes(1 << 16), socket.MSG_DONTWAIT)
        while written:
            written -= len(made.sender.recv(1 << 20))
        _until(lambda: received.done() or asleep())
        made.sender.sendall(b"1")
        return "" if received.result() == 1 else "a blocking receive returns EAGAIN when another thread may write"


def _reset(made: JoinablePair) -> str:
    made.join(made.receiver, made.sender)
    with _receiving(made, 1) as (received, asleep):
        _until(asleep)
        made.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        made.sender.close()
        return (
            "" if isinstance(received.result(), ConnectionResetError) else "a blocking receive does not hear of a reset"
        )


def _inquiry(made: JoinablePair) -> str:
    made.join(made.receiver, made.sender)
    made.receiver.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, 1)
    made.sender.sendall(bytes(_PART))
    _, told, _, _ = made.receiver.recvmsg(_PART - 1, socket.CMSG_SPACE(4))
    return "" if told == [(socket.IPPROTO_TCP, _TCP_INQ, struct.pack("=i", 1))] else "TCP_INQ is not told"


def _urgent(made: JoinablePair) -> str:
    made.join(made.receiver, made.sender)
    made.sender.send(b"1", socket.MSG_OOB)
    return (
        ""
        if _polled(made.receiver, select.POLLIN | select.POLLPRI) & select.POLLPRI
        else "MSG_OOB is sent as ordinary data"
    )


def _zero_copy(made: JoinablePair) -> str:
    """Less than a page is not mapped: TCP_ZEROCOPY_RECEIVE says how much is to be read in the ordinary way."""
    made.join(made.receiver, made.sender)
    made.sender.sendall(bytes(_PART))
    _readable(made)
    # struct tcp_zerocopy_receive: address (two words), length, recv_skip_hint, inq, err
    words = (ctypes.c_uint32 * 6)()
    size = ctypes.c_uint32(ctypes.sizeof(words))
    ctypes.CDLL(None).getsockopt(
        made.receiver.fileno(), socket.IPPROTO_TCP, _TCP_ZEROCOPY_RECEIVE, words, ctypes.byref(size)
    )
    return "" if words[3] == _PART else f"TCP_ZEROCOPY_RECEIVE finds {words[3]} of {_PART} bytes"


TRIALS: Final[tuple[Callable[[JoinablePair], str], ...]] = (
    *(_fionread, _splice, _low_water, _wait_for_all),
    *(_woken_by_a_writer, _reset, _inquiry, _urgent, _zero_copy),
)


@contextlib.contextmanager
def _receiving(
    made: JoinablePair, size: int, flags: int = 0
) -> Iterator[tuple[Future[int | OSError], Callable[[], bool]]]:
    """Receive once in a thread of its own; yield how many bytes that gave, or its error, and
    whether the thread sleeps in it.
    """
    thread: Future[int] = Future()

    def receive() -> int | OSError:
        thread.set_result(threading.get_native_id())
        try:
            return len(made.receiver.recv(size, flags))
        except OSError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        place = Path(f"/proc/self/task/{thread.result()}/syscall")
        yield received, lambda: place.read_text().split()[1:2] == [hex(made.receiver.fileno())]


def _until(condition: Callable[[], bool]) -> None:
    """Wait for *condition*. Raises KernelError where it does not come."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise KernelError(
                "what joined sockets do cannot be tried: the machine is too busy, or a thread's system call "
                "cannot be seen"
            )
        time.sleep(0.0005)
