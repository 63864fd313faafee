"""HTTP requests of kernel-path flows, counted by bpf/http.c: switched on and off, read, and given
to the node's metrics.

The kernel counts by numbers that control gives to pods and services; what they mean, the caller
looks up.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.redirect import hooks, http_layout, syscall
from nodeagent.redirect.http_layout import ANSWERED, FIRST_UNKNOWN, OUTCOMES, HttpCellValue, HttpKey
from nodeagent.redirect.maps import Map, possible_cpus
from nodeagent.telemetry import labels
from nodeagent.telemetry.metrics import BUCKETS, KERNEL_HTTP_UNKNOWN, PEER_LABELS, UNKNOWN, Labels
from nodeagent.telemetry.store import Store

_ZERO: Final = struct.pack("=I", 0)
_UNCOUNTED: Final = http_layout.HttpTables.uncounted
_FLAGS: Final = {"client_left": "DC", "server_left": "UC"}
"""Envoy's response flags for a connection that ended before the answer did."""
_WORKLOAD = PEER_LABELS.index("destination_workload")
_NAMESPACE = PEER_LABELS.index("destination_workload_namespace")
_Values = tuple[int, ...]
_SIZE: Final = len(BUCKETS) + 1
_VALUES: Final = ctypes.sizeof(HttpCellValue) // 8

PeerLabels = Callable[[int, int, int, int], Labels | None]
"""From (source pod, destination pod, service, port) to the values of PEER_LABELS; None when nobody
knows them any more.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What was counted since the last reading under one key. Histograms: duration in ns, request
    bytes, response bytes.
    """

    source: int
    destination: int
    service: int
    port: int
    status: int
    outcome: str
    buckets: tuple[_Values, _Values, _Values]
    sums: _Values

    @property
    def requests(self) -> int:
        return sum(self.buckets[0])


def install(maps: Mapping[str, Map], programs: Mapping[str, int], links: Path, cgroup: hooks.AttachPoint) -> None:
    """Write the tables, let the program call itself, and replace it where it is attached, at *cgroup*
    from now on. For the loader. Raises KernelError, OSError.
    """
    name = hooks.HTTP_EGRESS.name
    tables = http_layout.tables()
    before = maps["http_tables"].get(_ZERO) or bytes(ctypes.sizeof(tables))
    tables.uncounted = struct.unpack_from("=Q", before, _UNCOUNTED.offset)[0]
    maps["http_tables"].put(_ZERO, bytes(tables))
    maps["http_programs"].put(_ZERO, struct.pack("=I", programs[name]))
    if (links / name).exists():
        os.close(hooks.ensure(links / name, hooks.HTTP_EGRESS, cgroup, programs[name]))


class HttpMetrics:
    """The pinned program and maps. One thread only."""

    def __init__(self, maps: Mapping[str, Map], program: int, cgroup: hooks.AttachPoint, links: Path) -> None:
        """*program*, *cgroup*: the open program ``http_egress`` (-1: it is not loaded yet) and the
        pods' cgroup, which remain the caller's.

        What an earlier daemon did not read is dropped: its numbers meant other pods. Raises
        OSError.
        """
        self._maps = maps
        self.program = program
        self._cgroup = cgroup
        self._path = links / hooks.HTTP_EGRESS.name
        self._seen: dict[bytes, _Values] = {}
        self._uncounted = 0
        self.read()
        self._newly_uncounted()

    @property
    def ready(self) -> bool:
        return self.program >= 0

    @property
    def enabled(self) -> bool:
        return self._path.exists()

    def enable(self) -> None:
        """Attach the program, or see that it is; packets of all pods pay a few tens of ns from now
        on. Raises KernelError.
        """
        os.close(hooks.ensure(self._path, hooks.HTTP_EGRESS, self._cgroup, self.program))

    def disable(self) -> None:
        """Detach the program; connections that it was reading are unknown from here on. Raises OSError."""
        hooks.remove(self._path)

    def read(self) -> list[Row]:
        """Return what was counted since the last call. Raises OSError."""
        rows = []
        seen: dict[bytes, _Values] = {}
        for key, values in self._cells():
            before = self._seen.get(key)
            seen[key] = values
            changed = values if before is None else tuple(now - then for now, then in zip(values, before, strict=True))
            if any(changed):
                rows.append(_row(key, changed))
        self._seen = seen
        return rows

    def collect(self, store: Store, peer_labels: PeerLabels) -> None:
        """Add to *store* what was counted since the last call. Raises OSError."""
        series = []
        for row in self.read():
            peers = peer_labels(row.source, row.destination, row.service, row.port)
            if OUTCOMES.index(row.outcome) >= FIRST_UNKNOWN:
                workload, namespace = (peers[_WORKLOAD], peers[_NAMESPACE]) if peers else (UNKNOWN, UNKNOWN)
                store.add(KERNEL_HTTP_UNKNOWN, (workload, namespace, row.outcome), row.requests)
            elif peers is None:
                store.add(KERNEL_HTTP_UNKNOWN, (UNKNOWN, UNKNOWN, "no_labels"), row.requests)
            else:
                series.append(_series(peers, row))
        if series:
            store.merge({"http": series})
        if lost := self._newly_uncounted():
            store.add(KERNEL_HTTP_UNKNOWN, (UNKNOWN, UNKNOWN, "map_full"), lost)

    def forget(self, pod: int) -> None:
        """Delete what is counted for the number of a pod that is gone, after a last reading. Raises OSError."""
        for key in [
            key
            for key in self._seen
            if pod in (HttpKey.from_buffer_copy(key).source, HttpKey.from_buffer_copy(key).destination)
        ]:
            self._maps["http_requests"].drop(key)
            del self._seen[key]

    def _cells(self) -> list[tuple[bytes, _Values]]:
        """Every key with its values, summed over the CPUs (each CPU's copy is a whole number of u64)."""
        requests = self._maps["http_requests"]
        cpus = possible_cpus()
        raw = syscall.map_items(requests.fd, requests.spec.key_size, requests.spec.value_size * cpus, chunk=256)
        return [
            (key, tuple(map(sum, zip(*struct.iter_unpack(f"={_VALUES}Q", values), strict=True)))) for key, values in raw
        ]

    def _newly_uncounted(self) -> int:
        before = self._uncounted
        self._uncounted = struct.unpack_from("=Q", self._maps["http_tables"].get(_ZERO) or b"", _UNCOUNTED.offset)[0]
        return self._uncounted - before


def _row(key: bytes, values: _Values) -> Row:
    named = HttpKey.from_buffer_copy(key)
    first = values[:_SIZE]
    second = values[_SIZE : 2 * _SIZE]
    third = values[2 * _SIZE : 3 * _SIZE]
    sums = values[3 * _SIZE :]
    return Row(
        named.source,
        named.destination,
        named.service,
        named.port,
        named.status,
        OUTCOMES[named.outcome],
        (first, second, third),
        sums,
    )


def _filled(buckets: Sequence[int]) -> list[list[int]]:
    return [[index, count] for index, count in enumerate(buckets) if count]


def _series(peers: Labels, row: Row) -> list[object]:
    """One item of a worker's report, as Store.merge takes it."""
    flags = "-" if row.outcome == OUTCOMES[ANSWERED] else _FLAGS[row.outcome]
    sums = row.sums[0] / 1e6, row.sums[1], row.sums[2]
    histograms = [[_filled(buckets), total] for buckets, total in zip(row.buckets, sums, strict=True)]
    return [("source", "destination"), labels.http(peers, row.status, flags), histograms]
