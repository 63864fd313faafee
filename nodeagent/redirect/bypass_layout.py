"""bpf/bypass.h for Python."""

from __future__ import annotations

import ctypes
from typing import Final

from nodeagent.redirect.layout import ADDRESS_BYTES

_u8 = ctypes.c_uint8
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64

WAYS: Final = ("undecided", "socket", "tcp")
"""enum bypass_way, in its order."""


class BypassSide(ctypes.Structure):
    _fields_ = [
        ("netns", _u64),
        ("local", _u8 * ADDRESS_BYTES),
        ("remote", _u8 * ADDRESS_BYTES),
        ("local_port", _u32),
        ("remote_port", _u32),
    ]


class BypassStream(ctypes.Structure):
    _fields_ = [
        ("bytes", _u64),
        ("messages", _u64),
        ("way", _u32),
        ("joined", _u32),
        ("socket", _u64),
        ("written", _u32),
        ("reserved", _u32),
    ]
