"""The kernel path's maps: brought from one plan to the next so that no connection is judged by half
of one, and read.

Theory of operation
-------------------

Programs read these maps at any moment, map by map, and no write reaches two maps at once. So what a
program follows from one map to the next carries a number that names what belongs together:

    connect, sk_lookup                                written by sync()

    services[ClusterIP:port] ──set──▶ backends[set, slot]            endpoints of one moment
    destinations[address:port] ──generation──▶ verdicts[client, server, port, generation]

A number is taken, never used again, and what it names is complete before anything refers to it. A
destination (and a ClusterIP with its set, likewise) goes through these states:

                  verdicts written,           only pods came or went:
                  nobody finds them           single verdicts, no new generation
                        │                               ┌────┐
    absent ──_place──▶ prepared ──one write to──▶ in force ◀─┘ ──_leave──▶ absent
                                  destinations      │    ▲                (entry first,
                                                    └────┘                 then verdicts)
                                a verdict changed: prepared again under the next
                                generation, one write, old ones deleted

Between any two of these steps a program finds the old verdicts whole, the new ones whole, or no
destination: then the proxy decides. A map that is full raises KernelError in the middle of _place;
the destination is taken out, the port is the proxy's, and ``left_out`` says why. What nothing
refers to any more is deleted by _sweep, an earlier daemon's entries too: adopting its maps is
reading which numbers they use (_adopt) and then syncing to the first plan like any other.

Pods and Services have numbers of their own in flow records and totals, for life; a daemon that
starts again knows a pod by its network namespace's cookie and a Service by its ClusterIP.

Refusals are counted in the kernel without the policy's name. So they are read before verdicts
change (kernel_counts.py): what was refused is told with the policy that was in force then.

This module never decides: who may, mesh/kernel_plan.py says; one thread only.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from nodeagent.errors import KernelError
from nodeagent.mesh.kernel_plan import KernelDestination, KernelPlan, KernelService, KernelVerdict, Where
from nodeagent.redirect import heartbeat, layout
from nodeagent.redirect.kernel_counts import KernelCounts
from nodeagent.redirect.kernel_record import Record
from nodeagent.redirect.layout import pack_address, unpack_address
from nodeagent.redirect.maps import Map
from nodeagent.vocabulary import PodUid

_S = TypeVar("_S", bound=ctypes.Structure)
SPARE_NAMES: Final = 1024
"""Services that are gone, and whose numbers are known yet, before they are looked through."""
_WRITTEN: Final = ("destinations", "verdicts", "services", "backends")


@dataclass(slots=True)
class _Held:
    """A destination as it is in the maps."""

    pod: int
    flags: int
    generation: int
    verdicts: dict[int, KernelVerdict] | None


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
class _MapState:
    """What the daemon believes to be in the four maps that it writes."""

    wanted: dict[str, dict[bytes, bytes]] = field(default_factory=lambda: {name: {} for name in _WRITTEN})
    held: dict[Where, _Held] = field(default_factory=dict)
    sets: dict[Where, _Set] = field(default_factory=dict)


class KernelMaps:
    """The kernel path's maps. One thread only."""

    def __init__(self, opened: Mapping[str, Map], superseded: Callable[[], bool]) -> None:
        """*opened*: maps by name; *superseded* says whether they are another daemon's to write now.
        Raises OSError.
        """
        self._maps = opened
        self._superseded = superseded
        self._numbers = _Numbers()
        self._state = _MapState()
        self._pods: dict[int, int] = {}
        self._services: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._kept_names = 0
        """As many were needed yet when they were looked through last."""
        self._vips: dict[bytes, int] = {}
        self.record = Record(opened, self.service_name)
        self.left_out: dict[Where, str] = {}
        """What should be on the kernel path and is not, because a map is full; why."""
        self._adopt()
        self.counts = KernelCounts(opened, self.record, self.service_name, self._denials)

    # -- numbers --

    def number(self, cookie: int) -> int:
        """Return the number of the pod whose network namespace has *cookie*; it keeps it for life."""
        if cookie not in self._pods:
            self._pods[cookie] = self._numbers.take("pod")
        return self._pods[cookie]

    def _service_number(self, where: Where, service: str) -> int:
        """A Service of an earlier daemon is known by its ClusterIP."""
        number = self._services.get(service) or self._vips.get(_endpoint(where)) or self._numbers.take("service")
        self._services[service] = number
        self._names[number] = service
        return number

    def service_name(self, number: int) -> str:
        """Return ``namespace/name`` of the Service with *number*, empty when nobody knows it."""
        return self._names.get(number, "")

    def _adopt(self) -> None:
        items = {name: dict(self._maps[name].items()) for name in _WRITTEN}
        numbers = self._numbers
        state = self._state
        state.wanted = items
        for cookie, value in self._maps["pods"].items():
            if number := _as(layout.PodValue, value).id:
                self._pods[struct.unpack("=Q", cookie)[0]] = number
                numbers.seen("pod", number)
        for value in items["destinations"].values():
            destination = _as(layout.DestinationValue, value)
            numbers.seen("pod", destination.pod)
            numbers.seen("generation", destination.generation)
        for key in items["verdicts"]:
            verdict = _as(layout.VerdictKey, key)
            numbers.seen("pod", verdict.source, verdict.destination)
            numbers.seen("generation", verdict.generation)
        for key, value in items["services"].items():
            service = _as(layout.ServiceValue, value)
            numbers.seen("set", service.set)
            numbers.seen("service", service.number)
            self._vips[key] = service.number
        for key in items["backends"]:
            numbers.seen("set", _as(layout.BackendKey, key).set)
        for value in dict(self._maps["kernel_flows"].items()).values():
            flow = _as(layout.KernelFlow, value)
            numbers.seen("pod", flow.source, flow.destination)
            numbers.seen("service", flow.service)
        for key in dict(self._maps["flow_totals"].items()):
            total = _as(layout.FlowTotalKey, key)
            numbers.seen("pod", total.source, total.destination)
            numbers.seen("service", total.service)

    # -- from plan to plan --

    def confirm(self) -> None:
        """Say that the maps are as the cluster is; to be called several times within
        redirect.kernelPathTimeoutSeconds. Raises OSError.
        """
        if not self._superseded():
            heartbeat.beat(self._maps["heartbeat"].fd, layout.PULSE_KERNEL_PATH)

    def sync(self, plan: KernelPlan, numbers: Mapping[PodUid, int]) -> None:
        """Bring the maps to *plan*, and confirm them; *numbers* are those of the captured pods.

        Raises OSError; a map that is full only goes to ``left_out``. Nothing happens once another
        daemon has taken the node over.
        """
        if self._superseded():
            return
        self.counts.note_refusals()
        self.record.keep(numbers.values())
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
        if len(self._names) > max(2 * len(plan.services), self._kept_names) + SPARE_NAMES:
            self._forget_services()
        self.confirm()

    def _forget_services(self) -> None:
        """Forget the numbers of Services that are gone, and by which nothing is counted any more. Raises OSError."""
        there = self._state.wanted["services"]
        used = self.counts.services() | {_as(layout.ServiceValue, value).number for value in there.values()}
        self._names = {number: name for number, name in self._names.items() if number in used}
        self._services = {name: number for name, number in self._services.items() if number in used}
        self._vips = {key: number for key, number in self._vips.items() if key in there}
        self._kept_names = len(self._names)

    def withdraw(self, number: int, addresses: Collection[str] | None = None) -> None:
        """Take a pod off the kernel path at once, or only these *addresses*, which are its no
        longer. Raises OSError.
        """
        self._leave(
            [
                where
                for where, held in self._state.held.items()
                if held.pod == number and (addresses is None or where[0] in addresses)
            ]
        )
        for key, value in list(self._state.wanted["destinations"].items()):  # of an earlier daemon
            to = _as(layout.DestinationValue, value)
            if to.pod == number and (addresses is None or unpack_address(key[: layout.ADDRESS_BYTES]) in addresses):
                self._drop("destinations", key)

    def yield_addresses(self, number: int, addresses: Collection[str]) -> None:
        """Take *addresses* off the kernel path where they are another's than the pod *number*'s, to
        whom they are given. Raises OSError.
        """
        packed = {pack_address(address) for address in addresses}
        self._leave([where for where, held in self._state.held.items() if held.pod != number and where[0] in addresses])
        for key, value in list(self._state.wanted["destinations"].items()):
            if key[: layout.ADDRESS_BYTES] in packed and _as(layout.DestinationValue, value).pod != number:
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
        verdicts = (
            None
            if to.verdicts is None
            else {numbers[uid]: verdict for uid, verdict in to.verdicts.items() if uid in numbers}
        )
        held = self._state.held.get(where)
        if held is not None and (held.pod, held.flags) == (pod, flags) and _compatible(held.verdicts, verdicts):
            self._extend(where, held, verdicts or {})
            return
        generation = self._numbers.take("generation")
        for source, verdict in (verdicts or {}).items():
            self._permit(source, pod, where[1], generation, verdict)
        judged = layout.ANY_SOURCE if verdicts is None else layout.BY_SOURCE
        self._put("destinations", _endpoint(where), bytes(layout.DestinationValue(pod, generation, judged, flags)))
        self._state.held[where] = _Held(pod, flags, generation, verdicts)
        if held is not None:
            self._forget(where, held)

    def _extend(self, where: Where, held: _Held, verdicts: dict[int, KernelVerdict]) -> None:
        """Pods have come or gone, and nothing else has changed: no new generation is needed."""
        if held.verdicts is None:
            return
        for source in [source for source in held.verdicts if source not in verdicts]:
            self._drop("verdicts", _verdict_key(source, held, where))
            del held.verdicts[source]
        for source, verdict in verdicts.items():
            if held.verdicts.get(source) != verdict:
                self._permit(source, held.pod, where[1], held.generation, verdict)
                held.verdicts[source] = verdict

    def _permit(self, source: int, pod: int, port: int, generation: int, verdict: KernelVerdict) -> None:
        self._put(
            "verdicts",
            bytes(layout.VerdictKey(source, pod, port, generation)),
            bytes(layout.VerdictValue(allowed=verdict.allowed)),
        )

    def _leave(self, where: Collection[Where]) -> None:
        if any(self._refuses(each) for each in where):
            self.counts.note_refusals()
        for each in where:
            self._drop("destinations", _endpoint(each))
        for each in where:
            if (held := self._state.held.pop(each, None)) is not None:
                self._forget(each, held)

    def _refuses(self, where: Where) -> bool:
        """Say whether a verdict in force refuses anybody at *where*."""
        held = self._state.held.get(where)
        return held is not None and any(not verdict.allowed for verdict in (held.verdicts or {}).values())

    def _forget(self, where: Where, held: _Held) -> None:
        """Delete what nothing refers to any more."""
        for source in held.verdicts or {}:
            self._drop("verdicts", _verdict_key(source, held, where))

    def _balance(self, where: Where, service: KernelService) -> None:
        held = self._state.sets.get(where)
        if held is not None and held.service == service:
            return
        number = self._numbers.take("set")
        for slot, endpoint in enumerate(service.endpoints):
            self._put("backends", bytes(layout.BackendKey(number, slot)), _endpoint(endpoint))
        value = layout.ServiceValue(number, len(service.endpoints), self._service_number(where, service.service))
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
        for key in [
            key for key in self._state.wanted["verdicts"] if _as(layout.VerdictKey, key).generation not in generations
        ]:
            self._drop("verdicts", key)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        self._maps[name].put(key, value)
        self._state.wanted[name][key] = value

    def _drop(self, name: str, key: bytes) -> None:
        self._maps[name].drop(key)
        self._state.wanted[name].pop(key, None)

    # -- the check --

    def faults(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield everything in which the maps differ from what was written to them, in words, with
        what puts it right.
        """
        for name in _WRITTEN:
            one = self._maps[name]
            wanted = self._state.wanted[name]
            actual = dict(one.items(len(wanted)))
            for key in actual.keys() - wanted.keys():
                yield f"the map {name} has an entry that nobody made", partial(_drop, one, key)
            for key, value in wanted.items():
                if actual.get(key) != value:
                    yield f"the map {name} does not hold the kernel path's entry", partial(one.put, key, value)

    def _denials(self) -> dict[tuple[int, int, int], str]:
        """Return the policies that refuse, by client's and server's number and port."""
        denials: dict[tuple[int, int, int], str] = {}
        for where, held in self._state.held.items():
            for source, verdict in (held.verdicts or {}).items():
                if not verdict.allowed:
                    denials[source, held.pod, where[1]] = verdict.policy
        return denials

    def forget(self, gone: Collection[int]) -> None:
        """Delete what was counted of pods that are *gone*, after a last reading. Raises OSError."""
        self.counts.forget(gone)
        self.record.forget(gone)
        self._pods = {cookie: number for cookie, number in self._pods.items() if number not in gone}


def _compatible(held: dict[int, KernelVerdict] | None, wanted: dict[int, KernelVerdict] | None) -> bool:
    """Say whether *wanted* contradicts no verdict of *held*."""
    if held is None or wanted is None:
        return held is wanted
    return all(wanted.get(source, verdict) == verdict for source, verdict in held.items())


def _verdict_key(source: int, held: _Held, where: Where) -> bytes:
    return bytes(layout.VerdictKey(source, held.pod, where[1], held.generation))


def _endpoint(where: Where) -> bytes:
    return pack_address(where[0]) + struct.pack("=I", where[1])


def _as(kind: type[_S], raw: bytes) -> _S:
    return kind.from_buffer_copy(raw)


def _drop(one: Map, key: bytes) -> None:
    one.drop(key)
