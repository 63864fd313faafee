"""A worker's metrics: plain integers in slots, found once per route and bumped per request.

This is the hot path: ``HttpCell.observe`` runs for every request. A cell holds what happened since
the last report; ``WorkerMetrics.delta`` takes it away, so control only ever adds and a counter
never goes back when a worker is replaced.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sized
from typing import Final

from nodeagent.telemetry.metrics import BUCKETS, REJECTED, SERIES_LIMIT, SERIES_PER_POD, Labels, Metric

Message = dict[str, object]
"""What is JSON then (``reports.py`` reads it)."""

MESSAGE_CHARACTERS: Final = 80_000
"""Of label values and buckets in one message: half of the channel's packet, the rest is for JSON's own marks."""
SERIES_CHARACTERS: Final = 700
"""What a series needs besides its labels at most, nearly: sixty buckets with their counts."""
PLAIN_CHARACTERS: Final = 100
"""What a counter or a gauge needs besides its labels: its name and a number."""
_MILLISECONDS: Final = [float(bound) for bound in BUCKETS]
_BYTES: Final = [int(bound) for bound in BUCKETS]
"""Integers compare faster; a whole number is at most 0.5 exactly when it is at most 0."""
_ZEROS: Final = [0] * (len(BUCKETS) + 1)


class HttpCell:
    """One istio_requests_total series and its three histograms."""

    __slots__ = ("duration", "duration_sum", "received", "received_sum", "sent", "sent_sum")

    def __init__(self) -> None:
        self._clear()

    def observe(self, duration_ms: float, received: int, sent: int) -> None:
        """Count one finished request: its *duration_ms*, its bytes *received* from and *sent* to
        the client, headers included.
        """
        self.duration[bisect_left(_MILLISECONDS, duration_ms)] += 1
        self.received[bisect_left(_BYTES, received)] += 1
        self.sent[bisect_left(_BYTES, sent)] += 1
        self.duration_sum += duration_ms
        self.received_sum += received
        self.sent_sum += sent

    def take(self) -> list[list[object]] | None:
        """Return what was observed since the last call, as [buckets, sum] pairs with sparse buckets, or None."""
        if not any(self.duration):
            return None
        taken: list[list[object]] = [
            [sparse(self.duration), self.duration_sum],
            [sparse(self.received), self.received_sum],
            [sparse(self.sent), self.sent_sum],
        ]
        self._clear()
        return taken

    def _clear(self) -> None:
        self.duration = _ZEROS[:]
        self.received = _ZEROS[:]
        self.sent = _ZEROS[:]
        self.duration_sum = 0.0
        self.received_sum = 0
        self.sent_sum = 0


class TcpCell:
    """The four istio_tcp_* counters of one series; whoever carries the bytes adds to the slots."""

    __slots__ = ("closed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = self.closed = self.sent = self.received = 0

    def take(self) -> list[int] | None:
        """Return [opened, closed, sent, received] since the last call, or None."""
        taken = [self.opened, self.closed, self.sent, self.received]
        if not any(taken):
            return None
        self.opened = self.closed = self.sent = self.received = 0
        return taken


class MessageCell:
    """The two istio_*_messages_total counters of one series; whoever carries calls adds to the slots."""

    __slots__ = ("requests", "responses")

    def __init__(self) -> None:
        self.requests = self.responses = 0

    def take(self) -> list[int] | None:
        """Return [requests, responses] since the last call, or None."""
        if not self.requests and not self.responses:
            return None
        taken = [self.requests, self.responses]
        self.requests = self.responses = 0
        return taken


class WorkerMetrics:
    """All cells of one worker."""

    def __init__(self, series_limit: int = SERIES_LIMIT, per_pod: int = SERIES_PER_POD) -> None:
        self._limit = series_limit
        self._per_pod = per_pod
        self._of_pod: dict[str, int] = {}
        self._http: dict[tuple[Labels, Labels], HttpCell] = {}
        self._untold_http = HttpCell()
        self._tcp: dict[tuple[Labels, Labels], TcpCell] = {}
        self._untold_tcp = TcpCell()
        self._messages: dict[tuple[Labels, Labels], MessageCell] = {}
        self._untold_messages = MessageCell()
        self._counts: dict[tuple[str, Labels], int] = {}
        self._gauges: dict[tuple[str, Labels], float] = {}

    def http(self, reporters: tuple[str, ...], labels: Labels, pod: str = "") -> HttpCell:
        """Return the cell of *labels* (HTTP_LABELS), the same one for the same arguments: keep it
        per route and code.

        *reporters* are those for whom the request counts: one that never leaves the node counts as
        both. *pod*: the uid of the pod whose traffic it is.
        """
        key = (reporters, labels)
        cell = self._http.get(key)
        if cell is None:
            if not self._has_room(self._http, pod):
                return self._untold_http
            cell = self._http[key] = HttpCell()
        return cell

    def tcp(self, reporters: tuple[str, ...], labels: Labels, pod: str = "") -> TcpCell:
        """Return the cell of *labels* (TCP_LABELS), the same one for the same arguments."""
        key = (reporters, labels)
        cell = self._tcp.get(key)
        if cell is None:
            if not self._has_room(self._tcp, pod):
                return self._untold_tcp
            cell = self._tcp[key] = TcpCell()
        return cell

    def messages(self, reporters: tuple[str, ...], labels: Labels, pod: str = "") -> MessageCell:
        """Return the cell of *labels* (MESSAGE_LABELS), the same one for the same arguments."""
        key = (reporters, labels)
        cell = self._messages.get(key)
        if cell is None:
            if not self._has_room(self._messages, pod):
                return self._untold_messages
            cell = self._messages[key] = MessageCell()
        return cell

    def count(self, metric: Metric, labels: Labels = (), amount: int = 1) -> None:
        """Add *amount* to a nodeagent_* counter."""
        key = (metric.name, labels)
        self._counts[key] = self._counts.get(key, 0) + amount

    def gauge(self, metric: Metric, labels: Labels, value: float) -> None:
        """Set a nodeagent_* gauge."""
        self._gauges[metric.name, labels] = value

    def _has_room(self, cells: Sized, pod: str) -> bool:
        """Say whether a new cell of *pod* will be reported; what is beyond a bound shares one that goes nowhere."""
        held = self._of_pod.get(pod, 0)
        if len(cells) >= self._limit or (pod and held >= self._per_pod):
            self.count(REJECTED, ("series",))
            return False
        self._of_pod[pod] = held + 1
        return True

    def delta(self) -> list[Message]:
        """Return what changed since the last call as messages for ``Store.merge``, each small enough for one packet."""
        messages: list[Message] = []
        for kind, series in (
            ("http", _taken(self._http)),
            ("tcp", _taken(self._tcp)),
            ("messages", _taken(self._messages)),
            ("counts", _plain(self._counts)),
            ("gauges", _plain(self._gauges)),
        ):
            messages += [{kind: chunk} for chunk in chunks(series)]
        self._counts = {}
        self._gauges = {}
        return messages


def _taken(
    cells: Mapping[tuple[Labels, Labels], HttpCell | TcpCell | MessageCell],
) -> Iterator[tuple[int, list[object]]]:
    """Return what the series have counted, each with the characters that it takes at most."""
    for (reporters, labels), cell in cells.items():
        values = cell.take()
        if values is not None:
            yield SERIES_CHARACTERS + sum(map(len, labels)), [reporters, labels, values]


def _plain(values: Mapping[tuple[str, Labels], object]) -> Iterator[tuple[int, list[object]]]:
    """Return counters or gauges, each with the characters that it takes at most."""
    for (name, labels), value in values.items():
        yield PLAIN_CHARACTERS + sum(map(len, labels)), [name, labels, value]


def chunks(series: Iterator[tuple[int, list[object]]]) -> Iterator[list[object]]:
    """Cut *series* where a message is full."""
    chunk: list[object] = []
    size = 0
    for characters, item in series:
        size += characters
        if chunk and size > MESSAGE_CHARACTERS:
            yield chunk
            chunk = []
            size = characters
        chunk.append(item)
    if chunk:
        yield chunk


def sparse(buckets: list[int]) -> list[list[int]]:
    """Return the *buckets* that hold something, as [index, count] pairs."""
    return [[index, count] for index, count in enumerate(buckets) if count]
