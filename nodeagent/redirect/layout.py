"""bpf/nodeagent.h for Python: the structs that kernel programs and the daemon share, each declared
once.

tests/bpf/test_layout.py compiles the header and compares sizes, offsets and the order of the
counters.
"""

from __future__ import annotations

import ctypes
import socket
from typing import Final

_u8 = ctypes.c_uint8
_u16 = ctypes.c_uint16
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64

ADDRESS_BYTES: Final = 16
MAPPED: Final = b"\0" * 10 + b"\xff\xff"
"""Prefix of an IPv4 address in 16 bytes (RFC 4291, 2.5.5.2)."""

OUTBOUND: Final = 0
INBOUND: Final = 1


EARLIER_CGROUPS: Final = 3


class SettingsValue(ctypes.Structure):
    _fields_ = [
        ("heartbeat_timeout_ns", _u64),
        ("agent_cgroup", _u64),
        ("host_netns", _u64),
        ("deny_unknown", _u32),
        ("outbound_port", _u16),
        ("inbound_port", _u16),
        ("kernel_path_timeout_ns", _u64),
        ("earlier_cgroups", _u64 * EARLIER_CGROUPS),
        ("owner", _u64),
    ]


def settings(value: bytes | None) -> SettingsValue:
    """Return what the map ``settings`` holds, of whatever version: what is missing at the end is zero."""
    size = ctypes.sizeof(SettingsValue)
    return SettingsValue.from_buffer_copy((value or b"")[:size].ljust(size, b"\0"))


PULSE_DAEMON: Final = 0
PULSE_KERNEL_PATH: Final = 1
"""enum pulse."""


REFUSE_DEAD: Final = 1
REFUSE_UNREDIRECTED: Final = 2
PROBED: Final = 4
"""enum protection."""


class PodValue(ctypes.Structure):
    _fields_ = [
        *((name, _u32) for name in ("protection", "id", "bypass", "reserved")),
        ("ipv4", _u8 * ADDRESS_BYTES),
        ("ipv6", _u8 * ADDRESS_BYTES),
    ]


class DeniedValue(ctypes.Structure):
    _fields_ = [(name, _u64) for name in ("cgroup", "refused", "refused_at")]


class PortKey(ctypes.Structure):
    _fields_ = [("netns", _u64), ("direction", _u32), ("port", _u32)]


class ListenerKey(ctypes.Structure):
    _fields_ = [("netns", _u64), ("direction", _u32), ("family", _u32)]


class EndpointKey(ctypes.Structure):
    _fields_ = [("address", _u8 * ADDRESS_BYTES), ("port", _u32)]


class OriginalValue(ctypes.Structure):
    _fields_ = [("asked", EndpointKey), ("chosen", EndpointKey), ("service", _u32), ("kernel", _u32)]


class SourceKey(ctypes.Structure):
    _fields_ = [("netns", _u64), ("address", _u8 * ADDRESS_BYTES), ("port", _u32), ("reserved", _u32)]


ANY_SOURCE: Final = 0
BY_SOURCE: Final = 1
"""enum verdict_of."""
FLOW_HTTP: Final = 1
FLOW_BYPASS: Final = 2
"""enum flow_flag."""


class DestinationValue(ctypes.Structure):
    _fields_ = [(name, _u32) for name in ("pod", "generation", "verdict", "flags")]


class VerdictKey(ctypes.Structure):
    _fields_ = [(name, _u32) for name in ("source", "destination", "port", "generation")]


class VerdictValue(ctypes.Structure):
    _fields_ = [("allowed", _u32), ("reserved", _u32)]


class ServiceValue(ctypes.Structure):
    _fields_ = [(name, _u32) for name in ("set", "count", "number", "reserved")]


class BackendKey(ctypes.Structure):
    _fields_ = [("set", _u32), ("slot", _u32)]


class FlowKey(ctypes.Structure):
    _fields_ = [
        ("source", _u8 * ADDRESS_BYTES),
        ("destination", _u8 * ADDRESS_BYTES),
        ("source_port", _u32),
        ("destination_port", _u32),
    ]


class FlowEnd(ctypes.Structure):
    _fields_ = [("sent", _u64), ("received", _u64)]


class KernelFlow(ctypes.Structure):
    _fields_ = [
        *((name, _u64) for name in ("client", "server", "opened")),
        ("ends", FlowEnd * 2),
        *((name, _u32) for name in ("source", "destination", "service", "flags", "client_closed", "server_closed")),
    ]


class DeliveryValue(ctypes.Structure):
    _fields_ = [("dialler", _u64), ("client", _u8 * ADDRESS_BYTES)]


CLOSED_FLOWS: Final = 32
"""Of a pod, in struct closed_flows."""


class ClosedFlow(ctypes.Structure):
    _fields_ = [("ends", FlowKey), ("flow", KernelFlow), ("closed", _u64)]


class ClosedFlows(ctypes.Structure):
    _fields_ = [("next", _u64), ("flows", ClosedFlow * CLOSED_FLOWS)]


class FlowTotalKey(ctypes.Structure):
    _fields_ = [(name, _u32) for name in ("source", "destination", "port", "service")]


class FlowTotal(ctypes.Structure):
    _fields_ = [(name, _u64) for name in ("opened", "closed", "failed", "received", "sent", "refused", "refused_at")]


COUNTERS: Final = (
    "outbound_captured",
    "outbound_excluded",
    "outbound_unknown_allowed",
    "outbound_unknown_denied",
    "outbound_dead_passed",
    "outbound_dead_refused",
    "outbound_full_passed",
    "outbound_full_refused",
    "outbound_unredirectable_passed",
    "outbound_unredirectable_refused",
    "inbound_captured",
    "inbound_excluded",
    "inbound_unknown_refused",
    "inbound_dead_passed",
    "inbound_dead_refused",
    "inbound_dead_probed",
    "inbound_assign_failed",
    "outbound_kernel",
    "outbound_kernel_refused",
    "inbound_kernel",
    "inbound_kernel_refused",
    "kernel_uncounted",
    "inbound_delivered",
    "delivery_unknown",
    "inbound_unanswered",
    "outbound_left_alone",
)
"""enum counter, in its order and in lower case."""


def pack_address(text: str) -> bytes:
    """Return the 16 bytes of an IPv4 or IPv6 address. Raises OSError when *text* is none."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return MAPPED + socket.inet_pton(socket.AF_INET, text)


def unpack_address(packed: bytes) -> str:
    """Return the canonical text (RFC 5952) of 16 bytes; a v4-mapped address comes back as IPv4."""
    if packed.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)
