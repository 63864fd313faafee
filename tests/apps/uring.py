"""connect() by io_uring(7), without a connect system call: for the tests that this is no way round capture."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

_SETUP, _ENTER = 425, 426
_SQPOLL, _GETEVENTS, _WAKEUP = 2, 1, 2
_SUBMISSIONS = 0x10000000
_OP_CONNECT = 16
_PARAMETERS = struct.Struct("=10I 8IQ 8IQ")
"""struct io_uring_params with its sq_off and cq_off."""
_libc = ctypes.CDLL(None, use_errno=True)


def connect(sock: socket.socket, host: str, port: int, *, polled: bool = False) -> None:
    """Connect *sock* to the numeric *host* by a ring of its own; *polled*: a thread of the kernel
    issues the operation. Raises OSError.
    """
    parameters = bytearray(_PARAMETERS.pack(0, 0, _SQPOLL if polled else 0, 0, 1000, *(0,) * 23))
    ring = _call(_SETUP, 4, ctypes.addressof(ctypes.c_char.from_buffer(parameters)))
    try:
        values = _PARAMETERS.unpack(parameters)
        sq_tail, sq_array, cq_cqes = values[11], values[16], values[24]
        size = max(sq_array + 4 * values[0], cq_cqes + 16 * values[1])
        with mmap.mmap(ring, size) as queues, mmap.mmap(ring, 64 * values[0], offset=_SUBMISSIONS) as submissions:
            address = ctypes.create_string_buffer(_address(sock.family, host, port))
            operation = struct.pack(
                "=BBHiQQIIQ", _OP_CONNECT, 0, 0, sock.fileno(), len(address) - 1, ctypes.addressof(address), 0, 0, 1
            )
            submissions[: len(operation)] = operation
            queues[sq_array : sq_array + 4] = bytes(4)
            queues[sq_tail : sq_tail + 4] = struct.pack("=I", 1)
            _call(_ENTER, ring, 1, 1, _GETEVENTS | (_WAKEUP if polled else 0), 0, 0)
            (result,) = struct.unpack_from("=i", queues, cq_cqes + 8)
    finally:
        os.close(ring)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _address(family: int, host: str, port: int) -> bytes:
    packed = struct.pack("=H", family) + struct.pack("!H", port)
    return packed + (
        socket.inet_aton(host) + bytes(8)
        if family == socket.AF_INET
        else bytes(4) + socket.inet_pton(family, host) + bytes(4)
    )


def _call(number: int, *arguments: int) -> int:
    result = int(_libc.syscall(*map(ctypes.c_long, (number, *arguments))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"io_uring: {os.strerror(code)}")
    return result
