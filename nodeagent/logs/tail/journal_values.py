"""Values of systemd's journal as they are compressed in its files: by zstd, LZ4 or XZ.

Python has the last of them. The others are the libraries that journald itself has on every system with it; where
one is not there, a value is not read, and that is said.
"""

from __future__ import annotations

import ctypes
import functools
import lzma
import struct
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent.errors import NodeagentError

XZ: Final = 1
LZ4: Final = 2
ZSTD: Final = 4
"""Flags of an object (``OBJECT_COMPRESSED_*`` of systemd's journal-def.h)."""
LZ4_LIBRARY: Final = "liblz4.so.1"
ZSTD_LIBRARY: Final = "libzstd.so.1"
_XZ_MEMORY: Final = 64 << 20
_WINDOW_LOG: Final = 24
"""journald's level wants 2 MiB; zstd alone would take 128."""
_WINDOW_LOG_MAX: Final = 100
"""``ZSTD_d_windowLogMax`` of zstd.h."""
_LZ4_HEAD: Final = struct.Struct("<Q")


class ValueFault(NodeagentError):
    """A value cannot be decompressed: says why."""


def decompressed(kind: int, packed: bytes, most: int) -> bytes:
    """Return what *packed* holds, its first *most* bytes at most. Raise ValueFault."""
    if not kind:
        return packed[:most]
    unpack = _BY_FLAG.get(kind)
    if unpack is None:
        raise ValueFault("compressed in a way that is not known")
    return unpack(packed, most)


def _xz(packed: bytes, most: int) -> bytes:
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY).decompress(packed, most)
    except lzma.LZMAError:
        raise ValueFault("damaged") from None


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    """Raises ValueFault where there is none."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise ValueFault(f"compressed, and {name} is not there") from None


def _lz4(packed: bytes, most: int) -> bytes:
    if len(packed) <= _LZ4_HEAD.size:
        raise ValueFault("damaged")
    size: int = min(_LZ4_HEAD.unpack_from(packed)[0], most)
    block = packed[_LZ4_HEAD.size :]
    made = ctypes.create_string_buffer(max(size, 1))
    count = _library(LZ4_LIBRARY).LZ4_decompress_safe_partial(block, made, len(block), size, size)
    if count < 0:
        raise ValueFault("damaged")
    return ctypes.string_at(made, count)


class _ZstdBuffer(ctypes.Structure):
    """``ZSTD_inBuffer`` and ``ZSTD_outBuffer``."""

    _fields_ = [("bytes", ctypes.c_char_p), ("size", ctypes.c_size_t), ("at", ctypes.c_size_t)]


@functools.cache
def _zstd_library() -> ctypes.CDLL:
    """Raises ValueFault where there is none."""
    found = _library(ZSTD_LIBRARY)
    found.ZSTD_createDCtx.restype = ctypes.c_void_p
    found.ZSTD_freeDCtx.argtypes = [ctypes.c_void_p]
    found.ZSTD_DCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    found.ZSTD_DCtx_setParameter.restype = ctypes.c_size_t
    found.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_ZstdBuffer), ctypes.POINTER(_ZstdBuffer)]
    found.ZSTD_decompressStream.restype = ctypes.c_size_t
    found.ZSTD_isError.argtypes = [ctypes.c_size_t]
    found.ZSTD_getFrameContentSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    found.ZSTD_getFrameContentSize.restype = ctypes.c_uint64
    return found


def _zstd(packed: bytes, most: int) -> bytes:
    zstd = _zstd_library()
    size = min(zstd.ZSTD_getFrameContentSize(packed, len(packed)), most)  # one that is not said is more than all
    context = zstd.ZSTD_createDCtx()
    if not context:
        raise ValueFault("compressed, and there is no memory for it")
    try:
        zstd.ZSTD_DCtx_setParameter(context, _WINDOW_LOG_MAX, _WINDOW_LOG)
        room = ctypes.create_string_buffer(max(size, 1))
        given = _ZstdBuffer(packed, len(packed), 0)
        made = _ZstdBuffer(ctypes.cast(room, ctypes.c_char_p), size, 0)
        while made.at < size:
            before = (given.at, made.at)
            left: int = zstd.ZSTD_decompressStream(context, ctypes.byref(made), ctypes.byref(given))
            if zstd.ZSTD_isError(left) or (left and before == (given.at, made.at)):
                raise ValueFault("damaged")
            if not left:
                break
        return ctypes.string_at(room, made.at)
    finally:
        zstd.ZSTD_freeDCtx(context)


_BY_FLAG: Final[Mapping[int, Callable[[bytes, int], bytes]]] = {XZ: _xz, LZ4: _lz4, ZSTD: _zstd}
