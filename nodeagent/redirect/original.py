"""Where a captured connection wanted to go: asked by the proxy workers once for every outbound connection."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from typing import NamedTuple

from nodeagent.errors import KernelError
from nodeagent.redirect import layout, syscall

_pack = lru_cache(1024)(layout.pack_address)
_unpack = lru_cache(4096)(layout.unpack_address)


class Original(NamedTuple):
    """What the app dialled; ``chosen``: the endpoint that the kernel picked for a ClusterIP, None where it did not."""

    address: str
    port: int
    chosen: tuple[str, int] | None


class OriginalDestinations:
    """The by_source map, seen from a worker. Not for use by several threads at once: the buffers are shared."""

    def __init__(self, map_fd: int) -> None:
        """*map_fd* is DataPlane.original_map_fd, or a copy of it received from control. Raises OSError."""
        self._key = layout.SourceKey()
        # of a later version its values are longer: the kernel writes all of one
        size = max(ctypes.sizeof(layout.OriginalValue), syscall.map_value_size(map_fd))
        self._room = ctypes.create_string_buffer(size)
        self._value = layout.OriginalValue.from_buffer(self._room)
        attr = syscall.MapElement(map_fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._room))
        libc = ctypes.CDLL(None, use_errno=True)
        self._call = libc.syscall
        self._arguments = (syscall.NUMBER, syscall.MAP_LOOKUP_AND_DELETE, ctypes.byref(attr), ctypes.sizeof(attr))
        self._attr = attr

    def take(self, netns_cookie: int, source_address: str, source_port: int) -> Original | None:
        """Return and forget the original destination of the connection that came from this source,
        None if it was not captured.

        *source_address* and *source_port* are the accepted socket's peer. Raises KernelError when
        the map cannot be read.
        """
        key = self._key
        key.netns = netns_cookie
        key.address[:] = _pack(source_address)
        key.port = source_port
        if self._call(*self._arguments) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            raise KernelError(
                f"the map of original destinations cannot be read: {os.strerror(ctypes.get_errno())}; the kernel "
                "must be 5.19 or newer"
            )
        asked = self._value.asked
        chosen = self._value.chosen
        return Original(
            _unpack(bytes(asked.address)),
            asked.port,
            (_unpack(bytes(chosen.address)), chosen.port) if chosen.port else None,
        )
