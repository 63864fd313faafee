"""Pods that are known and outside of the mesh, as the programs know them: so that
``redirect.unknownPods: deny`` refuses only what nobody has classified yet. And whom it refused.

A pod is here by the cookie of its network namespace, which the kernel uses once. An entry that is
forgotten therefore lets nobody pass but the pod that it was made for; all the same it goes when its
pod goes, or is captured.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.places.place import Place
from nodeagent.redirect import layout, netns
from nodeagent.redirect.maps import Map
from nodeagent.vocabulary import PodUid

_YES: Final = struct.pack("=I", 1)


@dataclass(frozen=True, slots=True)
class Denial:
    """Connections that were refused because their network namespace is no known pod's."""

    cookie: int
    """Of the network namespace."""
    cgroup: int
    """The number of the cgroup of the process that asked last."""
    refused: int
    """How many, since the first one."""
    uid: PodUid | None
    """The pod that it turned out to be, since: captured or left alone. None: nobody knows it."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A pod that is left alone: where it runs, and the cookie of its network namespace."""

    place: Place
    cookie: int


class LeftAlone:
    """The pods of this node that are left alone. One thread only."""

    def __init__(self, known: Map, denied: Map, superseded: Callable[[], bool]) -> None:
        """Adopts what an earlier daemon left in the maps *known* (``left_alone``) and *denied*, which are
        written until they are another daemon's. Raises OSError.
        """
        self._superseded = superseded
        self._map = known
        self._denied = denied
        self._pods: dict[PodUid, _Known] = {}
        self._adopted = {key for key, _ in known.items()}

    def admit(self, pods: Mapping[PodUid, Place]) -> list[str]:
        """Let *pods*, each by where it runs, connect as they like; return in
        words which could not be entered into the map: they are refused where unknown pods are.
        """
        wrong: list[str] = []
        if self._superseded():
            return wrong
        for uid, place in pods.items():
            before = self._pods.get(uid)
            if before is not None and before.place == place:
                continue
            try:
                self._admit(uid, place)
            except (KernelError, OSError) as error:
                wrong.append(f"pod {uid} cannot be told from an unknown one: {error}")
        return wrong

    def _admit(self, uid: PodUid, place: Place) -> None:
        cookie = netns.cookie_at(Path(place.netns), place.network)
        before = self._pods.get(uid)
        self._map.put(_key(cookie), _YES)
        self._pods[uid] = _Known(place, cookie)
        if before is not None and before.cookie not in self._cookies():
            self._map.drop(_key(before.cookie))

    def dismiss(self, pods: Collection[PodUid]) -> None:
        """*pods* are not left alone any more. Raises OSError."""
        for uid in pods:
            known = self._pods.pop(uid, None)
            if known is not None and known.cookie not in self._cookies() and not self._superseded():
                self._map.drop(_key(known.cookie))

    def captured(self, cookie: int) -> None:
        """The pod with this network namespace is, or shall be, captured. Raises OSError."""
        self._pods = {uid: known for uid, known in self._pods.items() if known.cookie != cookie}
        self._adopted.discard(_key(cookie))
        self._map.drop(_key(cookie))

    def known(self) -> frozenset[PodUid]:
        """Return the pods that are left alone."""
        return frozenset(self._pods)

    def prune(self) -> int:
        """Remove what an earlier daemon left of pods that are not left alone now; return how much it
        was. To be called when all pods are known. Raises OSError.
        """
        wanted = {_key(cookie) for cookie in self._cookies()}
        stale = self._adopted - wanted
        self._adopted.clear()
        return sum(self._map.drop(key) for key in stale)

    def faults(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield in words in what the map differs from what it should hold, with what puts it right."""
        wanted = {_key(cookie) for cookie in self._cookies()}
        actual = {key for key, _ in self._map.items(len(wanted))}
        for key in actual - wanted - self._adopted:
            yield "the map left_alone has an entry that nobody made", partial(self._drop, key)
        for key in wanted - actual:
            yield "the map left_alone does not hold a pod's entry", partial(self._map.put, key, _YES)

    def denials(self, captured: Mapping[int, PodUid]) -> list[Denial]:
        """Return who was refused for being unknown; *captured* are the enrolled pods by cookie. Raises OSError."""
        by_cookie = {known.cookie: uid for uid, known in self._pods.items()} | dict(captured)
        found = []
        for key, value in self._denied.items(0):
            cookie: int = struct.unpack("=Q", key)[0]
            denied = layout.DeniedValue.from_buffer_copy(value)
            found.append(Denial(cookie, denied.cgroup, denied.refused, by_cookie.get(cookie)))
        return found

    def _cookies(self) -> set[int]:
        return {known.cookie for known in self._pods.values()}

    def _drop(self, key: bytes) -> None:
        self._map.drop(key)


def cgroup_names(top: Path, numbers: Collection[int]) -> dict[int, str]:
    """Return where below *top* the cgroups with these *numbers* (inodes) are; those that are gone are left out."""
    found: dict[int, str] = {}
    for directory, _, _ in os.walk(top):
        if len(found) == len(numbers):
            break
        try:
            number = Path(directory).stat().st_ino
        except OSError:  # a cgroup may vanish while we look
            continue
        if number in numbers:
            found[number] = str(Path(directory).relative_to(top))
    return found


def _key(cookie: int) -> bytes:
    return struct.pack("=Q", cookie)
