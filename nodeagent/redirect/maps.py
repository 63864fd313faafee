"""The maps: what shape each has, and how one that is pinned already is taken over by a new daemon.

Values are bytes here; layout.py gives them their meaning.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from nodeagent.config import MapSizes
from nodeagent.errors import KernelError
from nodeagent.redirect import bypass_layout, http_layout, layout, syscall

_HASH = 1
_ARRAY = 2
_PROGRAMS = 3
_PERCPU_HASH = 5
_PERCPU_ARRAY = 6
_LRU_HASH = 9
SOCKHASH = 18
_NO_PREALLOC: Final = 1
"""BPF_F_NO_PREALLOC: these maps are only written from user space, and mostly empty."""

NODE_FLOWS: Final = 8192
"""Handshakes of the node's own connections to pods that may be under way at a time, and far more
than kubelet's probes are.
"""
CHUNK: Final = 4096
"""Entries that are read at once where nothing is known of how many there are."""
SPARE: Final = 64
_COOKIE: Final = 8
_FAMILIES_AND_DIRECTIONS: Final = 4
_ADDRESSES_A_POD: Final = 4
DENIED: Final = 1024
"""Network namespaces that were refused for being unknown, the last ones."""
_ANNOUNCED: Final = 4096
"""Dials that workers have announced and not begun: each is begun by the next system call."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map's shape, and the field of agent.yaml that gives its size (empty: fixed)."""

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int = 0
    setting: str = ""


def specifications(sizes: MapSizes) -> tuple[MapSpec, ...]:
    """Return the shape of every map; bpf/maps.h declares the same names."""
    size = ctypes.sizeof
    pods = "redirect.maps.pods"
    connections = "redirect.maps.connections"
    endpoints = "redirect.maps.endpoints"
    verdicts = "redirect.maps.verdicts"
    address = layout.ADDRESS_BYTES
    endpoint = size(layout.EndpointKey)
    original = size(layout.OriginalValue)
    return (
        MapSpec("settings", _ARRAY, 4, size(layout.SettingsValue), 1),
        MapSpec("heartbeat", _ARRAY, 4, 8, 2),
        MapSpec("counters", _PERCPU_ARRAY, 4, 8, len(layout.COUNTERS)),
        MapSpec("pods", _HASH, _COOKIE, size(layout.PodValue), sizes.pods, _NO_PREALLOC, pods),
        MapSpec("addresses", _HASH, address, _COOKIE, sizes.pods * _ADDRESSES_A_POD, _NO_PREALLOC, pods),
        MapSpec("left_alone", _HASH, _COOKIE, 4, sizes.pods, _NO_PREALLOC, pods),
        MapSpec("denied", _LRU_HASH, _COOKIE, size(layout.DeniedValue), DENIED),
        MapSpec(
            "exclusions", _HASH, size(layout.PortKey), 4, sizes.exclusions, _NO_PREALLOC, "redirect.maps.exclusions"
        ),
        MapSpec(
            "port_modes", _HASH, size(layout.PortKey), 4, sizes.exclusions, _NO_PREALLOC, "redirect.maps.exclusions"
        ),
        MapSpec("probed", _HASH, size(layout.PortKey), 4, sizes.exclusions, _NO_PREALLOC, "redirect.maps.exclusions"),
        MapSpec("listeners", SOCKHASH, size(layout.ListenerKey), 8, sizes.pods * _FAMILIES_AND_DIRECTIONS, 0, pods),
        MapSpec("by_cookie", _HASH, _COOKIE, original, sizes.connections, 0, connections),
        MapSpec("by_source", _LRU_HASH, size(layout.SourceKey), original, sizes.connections, 0, connections),
        MapSpec(
            "destinations", _HASH, endpoint, size(layout.DestinationValue), sizes.endpoints, _NO_PREALLOC, endpoints
        ),
        MapSpec(
            "verdicts",
            _HASH,
            size(layout.VerdictKey),
            size(layout.VerdictValue),
            sizes.verdicts,
            _NO_PREALLOC,
            verdicts,
        ),
        MapSpec("services", _HASH, endpoint, size(layout.ServiceValue), sizes.endpoints, _NO_PREALLOC, endpoints),
        MapSpec("backends", _HASH, size(layout.BackendKey), endpoint, sizes.endpoints, _NO_PREALLOC, endpoints),
        MapSpec(
            "kernel_flows",
            _HASH,
            size(layout.FlowKey),
            size(layout.KernelFlow),
            2 * sizes.connections,
            _NO_PREALLOC,
            connections,
        ),
        MapSpec("closed_flows", _HASH, 4, size(layout.ClosedFlows), 2 * sizes.pods, _NO_PREALLOC, pods),
        MapSpec("node_flows", _LRU_HASH, size(layout.FlowKey), 8, NODE_FLOWS),
        MapSpec(
            "flow_totals",
            _HASH,
            size(layout.FlowTotalKey),
            size(layout.FlowTotal),
            sizes.verdicts,
            _NO_PREALLOC,
            verdicts,
        ),
        MapSpec("announced", _LRU_HASH, _COOKIE, address, _ANNOUNCED),
        MapSpec(
            "deliveries",
            _HASH,
            size(layout.FlowKey),
            size(layout.DeliveryValue),
            sizes.connections,
            _NO_PREALLOC,
            connections,
        ),
        MapSpec("clients", _HASH, _COOKIE, address, sizes.connections, _NO_PREALLOC, connections),
        MapSpec("http_tables", _ARRAY, 4, size(http_layout.HttpTables), 1),
        MapSpec("http_programs", _PROGRAMS, 4, 4, 1),
        MapSpec("http_flows", _HASH, _COOKIE, size(http_layout.HttpFlow), sizes.connections, _NO_PREALLOC, connections),
        MapSpec(
            "http_ends", _HASH, _COOKIE, size(http_layout.HttpEnd), 2 * sizes.connections, _NO_PREALLOC, connections
        ),
        MapSpec(
            "http_requests",
            _PERCPU_HASH,
            size(http_layout.HttpKey),
            size(http_layout.HttpCellValue),
            http_layout.SERIES,
            _NO_PREALLOC,
        ),
        MapSpec("bypass_sockets", SOCKHASH, size(bypass_layout.BypassSide), 8, 2 * sizes.connections, 0, connections),
        MapSpec(
            "bypass_streams",
            _HASH,
            size(bypass_layout.BypassSide),
            size(bypass_layout.BypassStream),
            2 * sizes.connections,
            _NO_PREALLOC,
            connections,
        ),
    )


@dataclass(frozen=True, slots=True)
class Map:
    """An open map."""

    spec: MapSpec
    fd: int

    def get(self, key: bytes) -> bytes | None:
        return syscall.map_lookup(self.fd, key, self.spec.value_size)

    def put(self, key: bytes, value: bytes) -> None:
        """Raises KernelError when the map is full; OSError for anything else."""
        try:
            syscall.map_update(self.fd, key, value)
        except OSError as error:
            if error.errno not in (errno.E2BIG, errno.ENOSPC):
                raise
            raise KernelError(
                f"the BPF map {self.spec.name} is full ({self.spec.entries} entries): raise {self.spec.setting}"
            ) from None

    def drop(self, key: bytes) -> bool:
        """Delete *key*; return whether it was there."""
        return syscall.map_delete(self.fd, key)

    def held(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return what is stored under those of *keys* that are there, a system call each."""
        return syscall.map_held(self.fd, keys, self.spec.key_size, self.spec.value_size)

    def items(self, expected: int = CHUNK) -> list[tuple[bytes, bytes]]:
        """Return all entries, some more than *expected* a system call."""
        return syscall.map_items(self.fd, self.spec.key_size, self.spec.value_size, min(expected + SPARE, CHUNK))

    def keys(self) -> Iterator[bytes]:
        """One system call a key: for sockhash, which knows no batches."""
        key = syscall.map_next_key(self.fd, None, self.spec.key_size)
        while key is not None:
            yield key
            key = syscall.map_next_key(self.fd, key, self.spec.key_size)

    def used(self) -> int:
        return (
            sum(1 for _ in self.keys())
            if self.spec.kind == SOCKHASH
            else syscall.map_used(self.fd, self.spec.key_size, self.spec.value_size)
        )


@lru_cache(1)
def possible_cpus() -> int:
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return sum(int(part.split("-")[-1]) - int(part.split("-")[0]) + 1 for part in ranges)


def read_counters(counters: Map) -> dict[str, int]:
    """Return every counter by name, summed over the CPUs."""
    totals = {}
    for index, name in enumerate(layout.COUNTERS):
        raw = syscall.map_lookup(counters.fd, struct.pack("=I", index), 8 * possible_cpus()) or b""
        totals[name] = sum(struct.unpack(f"={len(raw) // 8}Q", raw))
    return totals


def open_all(directory: Path, sizes: MapSizes) -> dict[str, Map]:
    """Open the pinned maps. Raises KernelError when one is missing."""
    maps = {}
    for spec in specifications(sizes):
        try:
            maps[spec.name] = Map(spec, syscall.get(directory / spec.name))
        except OSError as error:
            raise KernelError(
                f"{directory / spec.name}: the pinned map cannot be opened: {error.strerror}; has the loader run?"
            ) from None
    return maps


@dataclass(frozen=True, slots=True)
class Succession:
    """All maps by name, and the descriptors of the pinned ones in another shape whose place new,
    still empty ones take.
    """

    maps: dict[str, Map]
    replaced: dict[str, int]
    found: frozenset[str]
    """Which maps were pinned, in whatever shape."""

    def carry(self) -> None:
        """Fill the new maps from those that they replace.

        A struct grows only at its end, and zeros there mean what its absence meant
        (bpf/nodeagent.h): what a newer version has there an older one leaves out. What protects
        pods must come over whole; of the rest, what does not fit is left behind. Sockets and counts
        are not carried. Raises KernelError where a setting has no room for all.
        """
        for name in (*_PROTECTING, *_CARRIED):
            if name in self.replaced:
                _carry(self.replaced[name], self.maps[name], whole=name in _PROTECTING)

    def close_pods(self, cookies: Iterable[int]) -> int:
        """Have the pods in the network namespaces *cookies*, which were captured, refused until they
        are enrolled again, where what protects them cannot be read: a later version has made those
        maps another kind of thing, or does without. Return how many. Raises KernelError.
        """
        unread = [name for name in _PROTECTING if name not in self.found or not self._readable(name)]
        closed = 0
        for key in (struct.pack("=Q", cookie) for cookie in cookies):
            if unread and ("pods" not in unread or self.maps["pods"].get(key) is None):
                self.maps["pods"].put(key, _CLOSED)
                closed += 1
        return closed

    def _readable(self, name: str) -> bool:
        return name not in self.replaced or _alike(self.replaced[name], self.maps[name].spec)


_CLOSED: Final = bytes(layout.PodValue(protection=layout.REFUSE_DEAD | layout.REFUSE_UNREDIRECTED))
_PROTECTING: Final = ("pods", "addresses", "exclusions", "port_modes")
_CARRIED: Final = (
    *("settings", "heartbeat", "left_alone", "probed", "destinations", "verdicts", "services", "backends"),
    *("kernel_flows", "closed_flows", "flow_totals", "by_cookie", "by_source", "deliveries", "clients"),
)


def succeed(directory: Path, successors: Path, sizes: MapSizes) -> Succession:
    """Pin every map in the right shape in *successors*: those of *directory* which have it, and new
    ones for the others. Raises KernelError.
    """
    maps: dict[str, Map] = {}
    replaced: dict[str, int] = {}
    found = frozenset(path.name for path in directory.iterdir())
    for spec in specifications(sizes):
        pinned = _pinned(directory / spec.name)
        fits = pinned is not None and shape(pinned) == (
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.entries,
            spec.flags,
        )
        maps[spec.name] = Map(spec, pinned) if pinned is not None and fits else _make(spec)
        if pinned is not None and not fits:
            replaced[spec.name] = pinned
        syscall.pin(maps[spec.name].fd, successors / spec.name)
    return Succession(maps, replaced, found)


def _pinned(path: Path) -> int | None:
    try:
        return syscall.get(path)
    except FileNotFoundError:
        return None


def _make(spec: MapSpec) -> Map:
    try:
        return Map(
            spec, syscall.map_create(spec.kind, spec.name, spec.key_size, spec.value_size, spec.entries, spec.flags)
        )
    except OSError as error:
        raise KernelError(
            f"the BPF map {spec.name} ({spec.entries} entries) cannot be made: {error.strerror}; `nodeagent "
            "check` says what the kernel lacks"
        ) from None


def shape(fd: int) -> tuple[int, ...]:
    """Return a map's type, key_size, value_size, max_entries and map_flags (struct bpf_map_info). Raises OSError."""
    kind, _, *rest = struct.unpack("=6I", syscall.info(fd)[:24])
    return (kind, *rest)


def identity(fd: int) -> int:
    """Return the kernel's number of an open map. Raises OSError."""
    return int(struct.unpack_from("=I", syscall.info(fd), 4)[0])


def _alike(old: int, spec: MapSpec) -> bool:
    """Say whether the entries of a map of another version can be read as those of *spec*."""
    kind, key_size, *_ = shape(old)
    return (kind, key_size) == (spec.kind, spec.key_size)


def _carry(old: int, new: Map, *, whole: bool) -> None:
    spec = new.spec
    if not _alike(old, spec):
        return
    _, key_size, value_size, *_ = shape(old)
    for key, value in syscall.map_items(old, key_size, value_size):
        try:
            new.put(key, value[: spec.value_size].ljust(spec.value_size, b"\0"))
        except KernelError:
            if whole:
                raise
            return
