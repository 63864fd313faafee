"""Enrolled pods against the kernel: everything in which it differs from what a pod must have, in the
order in which it has to be put right (the head of ``redirect/plane.py`` says why in that order).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from nodeagent.redirect import hooks, pins
from nodeagent.redirect import pod as pods
from nodeagent.redirect.maps import Map
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.vocabulary import Direction, family_of

POD_MAPS: Final = ("pods", "exclusions", "port_modes", "addresses")
"""The maps with entries of single pods."""


@dataclass(slots=True)
class CapturedPod:
    """An enrolled pod: what it must have in the kernel, and what holds it there."""

    pod: EnrolledPod
    entries: pods.Entries
    listeners: Listeners
    link: int = -1
    captured: bool = False
    """It had all of it at least once."""
    cookies: dict[bytes, bytes] = field(default_factory=dict)
    """What the map ``listeners`` held of it when nothing was found wrong last."""
    _right: tuple[EnrolledPod, Listeners, int] | None = None
    """As it was then."""

    @property
    def is_known(self) -> bool:
        """Say whether nothing was found wrong with it as it is now."""
        right = self._right
        if right is None:
            return False
        pod, listeners, link = right
        return pod is self.pod and listeners is self.listeners and link == self.link

    def know(self, cookies: dict[bytes, bytes]) -> None:
        """Nothing is wrong with it, and the map ``listeners`` holds *cookies* of it."""
        self.cookies = cookies
        self._right = self.pod, self.listeners, self.link

    @property
    def target(self) -> hooks.AttachPoint:
        return hooks.AttachPoint(
            self.pod.netns.fd, self.pod.netns.inode, f"the network namespace of pod {self.pod.uid}"
        )

    def close(self) -> None:
        """Close what is held here; the kernel keeps what is pinned."""
        self.listeners.close()
        self.pod.netns.close()
        if self.link >= 0:
            os.close(self.link)
            self.link = -1


Fault = tuple[str, Callable[[], None]]
"""What is wrong, and what puts it right."""


class Repairs:
    """What enrolled pods must have in the kernel: finds what is missing, and says how it is put right."""

    def __init__(
        self,
        opened: Mapping[str, Map],
        pinned: pins.Pins,
        programs: Mapping[str, int],
        ids: Mapping[str, int],
        slots: int,
        ports: dict[Direction, int],
    ) -> None:
        """*opened*: maps by name; *programs* and *ids*: descriptors and numbers of the programs by
        hook, as they are at any time; *slots*: listeners per pod, direction and family.
        """
        self._maps = opened
        self._pins = pinned
        self._programs = programs
        self._ids = ids
        self._slots = slots
        self._ports = ports

    def withdraw(self, capture: CapturedPod) -> None:
        """Take the pod out of the kernel: inbound capture first, then outbound, then what they used."""
        hooks.remove(self._pins.lookup(capture.pod.netns.cookie))
        if capture.link >= 0:
            os.close(capture.link)
            capture.link = -1
        for name in POD_MAPS:
            for key, value in capture.entries[name].items():
                if name == "pods" or self._maps[name].get(key) == value:
                    self._maps[name].drop(key)
        for direction, family, _ in pods.listener_ids(1):
            self._maps["listeners"].drop(pods.listener_key(capture.pod.netns.cookie, direction, family))

    def faults(self, capture: CapturedPod) -> Iterator[Fault]:
        """Yield everything in which the kernel differs from *capture*, in the order in which it has
        to be repaired; what comes later is looked at later.
        """
        found = False
        for fault in chain(self._listener_faults(capture), self.entry_faults(capture), self.link_faults(capture)):
            found = True
            yield fault
        if not found:
            capture.know(_cookies(capture))

    def entry_faults(self, capture: CapturedPod) -> Iterator[Fault]:
        for name, wanted in capture.entries.items():
            for key, value in wanted.items():
                if self._maps[name].get(key) != value:
                    yield (
                        f"the map {name} does not hold the pod's entry",
                        partial(self._maps[name].put, key, value),
                    )

    def _listener_faults(self, capture: CapturedPod) -> Iterator[Fault]:
        missing = [
            one
            for one in self._listener_ids(capture)
            if one not in capture.listeners.fds or not pods.is_listening(capture.listeners.fds[one])
        ]
        if missing:
            names = ", ".join(f"{direction} IPv{family} slot {slot}" for direction, family, slot in missing)
            yield f"no listener: {names}", partial(self._reopen, capture, missing)
        for direction, family, _ in pods.listener_ids(1):
            one = (direction, family, 0)
            first = capture.listeners.fds.get(one)
            if first is None or (one in missing and not pods.is_listening(first)):  # or it was opened anew meanwhile
                continue
            key = pods.listener_key(capture.pod.netns.cookie, direction, family)
            if self._maps["listeners"].get(key) != pods.socket_cookie(first):
                value = struct.pack("=Q", first.fileno())
                yield (
                    f"the {direction} IPv{family} listener is not in the map",
                    partial(self._maps["listeners"].put, key, value),
                )

    def _listener_ids(self, capture: CapturedPod) -> list[ListenerId]:
        """Those that the pod must have; before it is captured, also those which may turn out to be impossible."""
        families = {family_of(address) for address in capture.pod.addresses}
        if not capture.captured:
            families = {4, 6}
        return [one for one in pods.listener_ids(self._slots) if one[1] in families or one in capture.listeners.fds]

    def _reopen(self, capture: CapturedPod, missing: list[ListenerId]) -> None:
        for one in missing:
            if one in capture.listeners.fds:
                capture.listeners.fds[one].close()
        kept = {one: listener for one, listener in capture.listeners.fds.items() if one not in missing}
        capture.listeners = Listeners({**kept, **pods.open_listeners(capture.pod, missing, self._ports)})

    def link_faults(self, capture: CapturedPod) -> Iterator[Fault]:
        hook = hooks.LOOKUP
        path = self._pins.lookup(capture.pod.netns.cookie)
        wrong: str | None = f"{hook.name} is not attached to {capture.target.what}"
        if capture.link >= 0:
            wrong = hooks.fault(capture.link, hook, capture.target, self._ids[hook.name])
        if wrong or not path.exists():
            yield wrong or f"the link {path.name} is not pinned", partial(self._relink, capture, path)

    def _relink(self, capture: CapturedPod, path: Path) -> None:
        capture.link = self.attach(capture.link, path, hooks.LOOKUP, capture.target)

    def attach(self, held: int, path: Path, hook: hooks.Hook, target: hooks.AttachPoint) -> int:
        """Return a pinned link; the one that is *held* (-1: none) is kept if it only lost its pin.

        Never two links at once: a program that saw its own redirection would take it for a
        connection to loopback.
        """
        if held >= 0:
            if hooks.fault(held, hook, target, self._ids[hook.name]) is None:
                pins.pin(held, path)
                return held
            os.close(held)
        return hooks.ensure(path, hook, target, self._programs[hook.name])


def _cookies(capture: CapturedPod) -> dict[bytes, bytes]:
    """Return what the map ``listeners`` must hold of *capture*. Raises OSError."""
    return {
        pods.listener_key(capture.pod.netns.cookie, direction, family): pods.socket_cookie(listener)
        for (direction, family, slot), listener in capture.listeners.fds.items()
        if slot == 0
    }


def put_right(faults: Iterator[Fault]) -> list[str]:
    """Repair *faults* one after the other and return them in words. Raises what a repair raises."""
    repaired = []
    for words, repair in faults:
        repair()
        repaired.append(words)
    return repaired
