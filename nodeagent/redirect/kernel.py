"""The kernel path's maps: brought from one plan to the next so that no connection is judged by half of one, and read.

What is new is written first, under a generation (verdicts) or a set (endpoints) that nothing refers to yet; then one write
makes it valid, and what it replaces can be found no more; then that is deleted. So an earlier daemon's maps are adopted
by the same steps. Numbers of pods, generations and sets are never used twice.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

from nodeagent.errors import KernelError
from nodeagent.mesh.entries import PodUid
from nodeagent.mesh.kernel_path import KernelDestination, KernelService, Plan, Verdict, Where
from nodeagent.redirect import layout
from nodeagent.redirect.layout import pack_address, unpack_address
from nodeagent.redirect.maps import Map

_S = TypeVar("_S", bound=ctypes.Structure)
_REFUSED: Final = 8
"""Bytes at the beginning of a verdict that the kernel counts in."""
_WRITTEN: Final = ("destinations", "verdicts", "services", "backends")


class FlowId(NamedTuple):
    """A connection as its client sees it."""

    source: Where
    destination: Where


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection on the kernel path. ``source`` and ``destination``: numbers of pods; ``service``: its name, empty for a pod's own address."""

    id: FlowId
    source: int
    destination: int
    service: str
    opened: float
    """Unix time, 0: not established yet."""
    client: int
    """Cookies of the client's socket, """
    server: int
    """and of the server's; 0: not established yet."""
    http: bool
    bypass: bool


class Pair(NamedTuple):
    """What connections are counted by: numbers of pods, the server's port, the name of the Service (empty: none)."""

    source: int
    destination: int
    port: int
    service: str


@dataclass(frozen=True, slots=True)
class Total:
    """Connections, and the bytes of those that have ended."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Refusals:
    """Connections refused in the kernel. ``policy``: ``namespace/name``, empty when no ALLOW policy matched."""

    source: int
    destination: int
    port: int
    policy: str
    count: int


@dataclass(slots=True)
class _Held:
    """A destination as it is in the maps."""

    pod: int
    flags: int
    generation: int
    verdicts: dict[int, Verdict] | None


@dataclass(slots=True)
class _Set:
    """A Service's endpoints as they are in the maps."""

    service: KernelService
    number: int


@dataclass(slots=True)
class _Numbers:
    """The next number of each kind."""

    pod: int = 1
    generation: int = 1
    set: int = 1
    service: int = 1

    def take(self, kind: str) -> int:
        number = int(getattr(self, kind))
        setattr(self, kind, number + 1)
        return number

    def seen(self, kind: str, *numbers: int) -> None:
        setattr(self, kind, max(getattr(self, kind), *(number + 1 for number in numbers)))


@dataclass(slots=True)
class _State:
    """What the daemon believes to be in the four maps that it writes."""

    wanted: dict[str, dict[bytes, bytes]] = field(default_factory=lambda: {name: {} for name in _WRITTEN})
    held: dict[Where, _Held] = field(default_factory=dict)
    sets: dict[Where, _Set] = field(default_factory=dict)
    policies: dict[bytes, str] = field(default_factory=dict)
    """By key of a verdict."""
    refused: dict[bytes, int] = field(default_factory=dict)
    """Refusals that were told already, by key of a verdict."""


class KernelPath:
    """The kernel path's maps. One thread only."""

    def __init__(self, opened: Mapping[str, Map]) -> None:
        """*opened*: maps by name. Raises OSError."""
        self._maps = opened
        self._numbers = _Numbers()
        self._state = _State()
        self._pods: dict[int, int] = {}
        self._services: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._vips: dict[bytes, int] = {}
        self._untold: list[Refusals] = []
        self.left_out: dict[Where, str] = {}
        """What should be on the kernel path and is not, because a map is full; why."""
        self._adopt()
        self._base = self._read_totals()

    # -- numbers --

    def number(self, cookie: int) -> int:
        """Return the number of the pod whose network namespace has *cookie*; it keeps it for life."""
        if cookie not in self._pods:
            self._pods[cookie] = self._numbers.take("pod")
        return self._pods[cookie]

    def _service_number(self, where: Where, service: str) -> int:
        """A Service of an earlier daemon is known by its ClusterIP."""
        number = self._services.get(service) or self._vips.get(_endpoint(where)) or self._numbers.take("service")
        self._services[service], self._names[number] = number, service
        return number

    def service_name(self, number: int) -> str:
        """Return ``namespace/name`` of the Service with *number*, empty when nobody knows it."""
        return self._names.get(number, "")

    def _adopt(self) -> None:
        items, numbers, state = {name: dict(self._maps[name].items()) for name in _WRITTEN}, self._numbers, self._state
        state.wanted = items
        for cookie, value in self._maps["pods"].items():
            if number := _as(layout.Pod, value).id:
                self._pods[struct.unpack("=Q", cookie)[0]] = number
                numbers.seen("pod", number)
        for value in items["destinations"].values():
            destination = _as(layout.Destination, value)
            numbers.seen("pod", destination.pod)
            numbers.seen("generation", destination.generation)
        for key, value in items["verdicts"].items():
            verdict = _as(layout.VerdictKey, key)
            numbers.seen("pod", verdict.source, verdict.destination)
            numbers.seen("generation", verdict.generation)
            state.refused[key] = _as(layout.Verdict, value).refused
        for key, value in items["services"].items():
            service = _as(layout.Service, value)
            numbers.seen("set", service.set)
            numbers.seen("service", service.number)
            self._vips[key] = service.number
        for key in items["backends"]:
            numbers.seen("set", _as(layout.BackendKey, key).set)
        for value in dict(self._maps["kernel_flows"].items()).values():
            flow = _as(layout.KernelFlow, value)
            numbers.seen("pod", flow.source, flow.destination)
            numbers.seen("service", flow.service)
        for total, _ in self._read_totals().values():
            numbers.seen("pod", total.source, total.destination)
            numbers.seen("service", total.service)

    # -- from plan to plan --

    def sync(self, plan: Plan, numbers: Mapping[PodUid, int]) -> None:
        """Bring the maps to *plan*; *numbers* are those of the captured pods. Raises OSError; a map that is full only goes to ``left_out``."""
        self.left_out.clear()
        wanted = {where: to for where, to in plan.destinations.items() if to.pod in numbers}
        self._leave([where for where in self._state.held if where not in wanted])
        known = {_endpoint(where) for where in wanted}
        for key in [key for key in self._state.wanted["destinations"] if key not in known]:
            self._drop("destinations", key)
        for where, to in wanted.items():
            self._attempt(where, partial(self._place, where, to, numbers), partial(self._leave, [where]))
        vips = {_endpoint(where) for where in plan.services}
        for key in [key for key in self._state.wanted["services"] if key not in vips]:
            self._drop("services", key)
        self._state.sets = {where: held for where, held in self._state.sets.items() if where in plan.services}
        for where, service in plan.services.items():
            self._attempt(where, partial(self._balance, where, service), partial(self._unbalance, where))
        self._sweep()

    def withdraw(self, number: int, addresses: Collection[str] | None = None) -> None:
        """Take a pod off the kernel path at once, or only these *addresses*, which are its no longer. Raises OSError."""
        self._leave([where for where, held in self._state.held.items() if held.pod == number and (addresses is None or where[0] in addresses)])
        for key, value in list(self._state.wanted["destinations"].items()):  # of an earlier daemon
            to = _as(layout.Destination, value)
            if to.pod == number and (addresses is None or unpack_address(key[: layout.ADDRESS_BYTES]) in addresses):
                self._drop("destinations", key)

    def yield_addresses(self, number: int, addresses: Collection[str]) -> None:
        """Take *addresses* off the kernel path where they are another's than the pod *number*'s, to whom they are given. Raises OSError."""
        packed = {pack_address(address) for address in addresses}
        self._leave([where for where, held in self._state.held.items() if held.pod != number and where[0] in addresses])
        for key, value in list(self._state.wanted["destinations"].items()):
            if key[: layout.ADDRESS_BYTES] in packed and _as(layout.Destination, value).pod != number:
                self._drop("destinations", key)

    def _attempt(self, where: Where, step: Callable[[], None], undo: Callable[[], None]) -> None:
        try:
            step()
        except KernelError as error:
            self.left_out[where] = str(error)
            undo()

    def _place(self, where: Where, to: KernelDestination, numbers: Mapping[PodUid, int]) -> None:
        pod = numbers[to.pod]
        flags = layout.FLOW_HTTP * to.http | layout.FLOW_BYPASS * to.bypass
        verdicts = None if to.verdicts is None else {numbers[uid]: verdict for uid, verdict in to.verdicts.items() if uid in numbers}
        held = self._state.held.get(where)
        if held is not None and (held.pod, held.flags) == (pod, flags) and _compatible(held.verdicts, verdicts):
            self._extend(where, held, verdicts or {})
            return
        generation = self._numbers.take("generation")
        for source, verdict in (verdicts or {}).items():
            self._permit(source, pod, where[1], generation, verdict)
        judged = layout.ANY_SOURCE if verdicts is None else layout.BY_SOURCE
        self._put("destinations", _endpoint(where), bytes(layout.Destination(pod, generation, judged, flags)))
        self._state.held[where] = _Held(pod, flags, generation, verdicts)
        if held is not None:
            self._forget(where, held)

    def _extend(self, where: Where, held: _Held, verdicts: dict[int, Verdict]) -> None:
        """Pods have come or gone, and nothing else has changed: no new generation is needed."""
        if held.verdicts is None:
            return
        for source in [source for source in held.verdicts if source not in verdicts]:
            self._drop_verdict(_verdict_key(source, held, where))
            del held.verdicts[source]
        for source, verdict in verdicts.items():
            if held.verdicts.get(source) != verdict:
                self._permit(source, held.pod, where[1], held.generation, verdict)
                held.verdicts[source] = verdict

    def _permit(self, source: int, pod: int, port: int, generation: int, verdict: Verdict) -> None:
        key = bytes(layout.VerdictKey(source, pod, port, generation))
        self._put("verdicts", key, bytes(layout.Verdict(allowed=verdict.allowed)))
        self._state.policies[key] = verdict.policy

    def _leave(self, where: Collection[Where]) -> None:
        for each in where:
            self._drop("destinations", _endpoint(each))
        for each in where:
            if (held := self._state.held.pop(each, None)) is not None:
                self._forget(each, held)

    def _forget(self, where: Where, held: _Held) -> None:
        """Delete what nothing refers to any more."""
        for source in held.verdicts or {}:
            self._drop_verdict(_verdict_key(source, held, where))

    def _balance(self, where: Where, service: KernelService) -> None:
        held = self._state.sets.get(where)
        if held is not None and held.service == service:
            return
        number = self._numbers.take("set")
        for slot, endpoint in enumerate(service.endpoints):
            self._put("backends", bytes(layout.BackendKey(number, slot)), _endpoint(endpoint))
        value = layout.Service(number, len(service.endpoints), self._service_number(where, service.service))
        self._put("services", _endpoint(where), bytes(value))
        self._state.sets[where] = _Set(service, number)

    def _unbalance(self, where: Where) -> None:
        self._drop("services", _endpoint(where))
        self._state.sets.pop(where, None)

    def _sweep(self) -> None:
        """Delete endpoints and verdicts that nothing refers to: replaced ones, and an earlier daemon's."""
        sets = {held.number for held in self._state.sets.values()}
        for key in [key for key in self._state.wanted["backends"] if _as(layout.BackendKey, key).set not in sets]:
            self._drop("backends", key)
        generations = {held.generation for held in self._state.held.values()}
        for key in [key for key in self._state.wanted["verdicts"] if _as(layout.VerdictKey, key).generation not in generations]:
            self._drop_verdict(key)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        self._maps[name].put(key, value)
        self._state.wanted[name][key] = value

    def _drop(self, name: str, key: bytes) -> None:
        self._maps[name].drop(key)
        self._state.wanted[name].pop(key, None)

    def _drop_verdict(self, key: bytes) -> None:
        value = self._maps["verdicts"].get(key)
        if value is not None:
            self._note_refusals(key, value)
        self._drop("verdicts", key)
        self._state.refused.pop(key, None)
        self._state.policies.pop(key, None)

    # -- the check --

    def faults(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield everything in which the maps differ from what was written to them, in words, with what puts it right."""
        for name in _WRITTEN:
            skip = _REFUSED if name == "verdicts" else 0
            one, wanted, actual = self._maps[name], self._state.wanted[name], dict(self._maps[name].items())
            for key in actual.keys() - wanted.keys():
                yield f"the map {name} has an entry that nobody made", partial(_drop, one, key)
            for key, value in wanted.items():
                if actual.get(key, b"")[skip:] != value[skip:]:
                    yield f"the map {name} does not hold the kernel path's entry", partial(one.put, key, value)

    # -- what the kernel counted --

    def flows(self) -> list[Flow]:
        """Return the connections whose client's end is open. Raises OSError."""
        wall = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        found = []
        for key, value in self._maps["kernel_flows"].items():
            flow = _as(layout.KernelFlow, value)
            if flow.client_closed:
                continue
            opened = (flow.opened + wall) / 1e9 if flow.opened else 0.0
            http, bypass = bool(flow.flags & layout.FLOW_HTTP), bool(flow.flags & layout.FLOW_BYPASS)
            found.append(Flow(_flow_id(key), flow.source, flow.destination, self.service_name(flow.service), opened, flow.client, flow.server, http, bypass))
        return found

    def totals(self) -> dict[Pair, Total]:
        """Return what was counted since this object was made; bytes as soon as the client's end is closed. Raises OSError."""
        totals: dict[Pair, Total] = {}
        for key, (named, values) in self._read_totals().items():
            base = self._base.get(key)
            since = tuple(now - then for now, then in zip(values, base[1], strict=True)) if base else values
            pair = Pair(named.source, named.destination, named.port, self.service_name(named.service))
            totals[pair] = _sum(totals.get(pair, Total()), Total(*since))
        for key, value in self._maps["kernel_flows"].items():
            flow = _as(layout.KernelFlow, value)
            if flow.client_closed:
                client, server = flow.ends
                port = _as(layout.FlowKey, key).destination_port
                pair = Pair(flow.source, flow.destination, port, self.service_name(flow.service))
                half = Total(received=max(client.sent, server.received), sent=max(server.sent, client.received))
                totals[pair] = _sum(totals.get(pair, Total()), half)
        return totals

    def forget(self, gone: Collection[int]) -> None:
        """Delete the totals of pods that are *gone*, after a last reading. Raises OSError."""
        for key, (named, _) in self._read_totals().items():
            if named.source in gone or named.destination in gone:
                self._maps["flow_totals"].drop(key)
                self._base.pop(key, None)
        self._pods = {cookie: number for cookie, number in self._pods.items() if number not in gone}

    def refusals(self) -> list[Refusals]:
        """Return what was refused since the last call. Raises OSError."""
        for key, value in self._maps["verdicts"].items():
            self._note_refusals(key, value)
        told, self._untold = self._untold, []
        return told

    def _note_refusals(self, key: bytes, value: bytes) -> None:
        count = _as(layout.Verdict, value).refused
        if new := count - self._state.refused.get(key, 0):
            self._state.refused[key] = count
            named = _as(layout.VerdictKey, key)
            self._untold.append(Refusals(named.source, named.destination, named.port, self._state.policies.get(key, ""), new))

    def _read_totals(self) -> dict[bytes, tuple[layout.FlowTotalKey, tuple[int, ...]]]:
        return {key: (_as(layout.FlowTotalKey, key), struct.unpack("=5Q", value)) for key, value in self._maps["flow_totals"].items()}


def _compatible(held: dict[int, Verdict] | None, wanted: dict[int, Verdict] | None) -> bool:
    """Say whether *wanted* contradicts no verdict of *held*."""
    if held is None or wanted is None:
        return held is wanted
    return all(wanted.get(source, verdict) == verdict for source, verdict in held.items())


def _verdict_key(source: int, held: _Held, where: Where) -> bytes:
    return bytes(layout.VerdictKey(source, held.pod, where[1], held.generation))


def _endpoint(where: Where) -> bytes:
    return pack_address(where[0]) + struct.pack("=I", where[1])


def _flow_id(key: bytes) -> FlowId:
    named = _as(layout.FlowKey, key)
    return FlowId((unpack_address(bytes(named.source)), named.source_port), (unpack_address(bytes(named.destination)), named.destination_port))


def _as(kind: type[_S], raw: bytes) -> _S:
    return kind.from_buffer_copy(raw)


def _sum(one: Total, other: Total) -> Total:
    return Total(
        one.opened + other.opened, one.closed + other.closed, one.failed + other.failed, one.received + other.received, one.sent + other.sent
    )  # fmt: skip


def _drop(one: Map, key: bytes) -> None:
    one.drop(key)
