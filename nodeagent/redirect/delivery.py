"""Whom a connection to an application is for: told to the kernel by the proxy workers, once before
every such dial.

The kernel then shows the application that address as its peer's, and lets a connection that comes
over the network pass to it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from functools import lru_cache
from typing import Final

from nodeagent.redirect import layout, syscall

_SO_COOKIE: Final = 57
"""asm-generic/socket.h; not in Python's socket module."""
_pack = lru_cache(4096)(layout.pack_address)


class Announcements:
    """The map announced, seen from a worker. Not for use by several threads at once: the buffers are shared."""

    def __init__(self, map_fd: int) -> None:
        """*map_fd* is DataPlane.announced_map_fd, or a copy of it received from control."""
        self._key = ctypes.create_string_buffer(ctypes.sizeof(ctypes.c_uint64))
        self._value = ctypes.create_string_buffer(layout.ADDRESS_BYTES)
        self._attr = syscall.MapElement(
            map_fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), syscall.ANY
        )
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._arguments = (syscall.NUMBER, syscall.MAP_UPDATE, ctypes.byref(self._attr), ctypes.sizeof(self._attr))

    def put(self, dialler: socket.socket, client: str) -> None:
        """Say that *dialler*, an unconnected socket in some pod, will next be connected to an
        application, for the client at address *client*.

        *client* has the family of the address that will be dialled. Raises OSError.
        """
        self._key.raw = dialler.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, len(self._key))
        self._value.raw = _pack(client)
        if self._call(*self._arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number or errno.EIO, os.strerror(number))
