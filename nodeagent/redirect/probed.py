"""Whether anything listens where TCP probes ask: what the kubelet hears of a captured pod is the
pod's own answer.

The daemon's listener takes every connection that reaches a pod, so a port would always seem open.
The map ``probed`` holds the ports that probes ask for; ``sk_lookup`` resets what comes to one at
which nothing listens. That one opens, sockops notes at once; that it has closed is found here,
soon.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Collection
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import layout, sock_diag
from nodeagent.redirect.maps import Map
from nodeagent.redirect.netns import PodNetns
from nodeagent.steps import Steps

log = logging.getLogger("nodeagent.redirect")
LOOK_SECONDS: Final = 1.0
"""The shortest period that a probe can have."""
_YES = struct.pack("=I", 1)
_NO = struct.pack("=I", 0)


class Probed:
    """The probed ports of the enrolled pods."""

    def __init__(self, probed: Map) -> None:
        self._map = probed
        self._pods: dict[int, tuple[PodNetns, frozenset[int]]] = {}
        self._any = asyncio.Event()
        """There is a pod with probed ports."""

    def keep(self, netns: PodNetns, ports: frozenset[int]) -> None:
        """Watch *ports* of the pod in *netns*, and no others of it. Those for which the map has no
        room seem always open, and that is logged.
        """
        before = self._pods.get(netns.cookie, (netns, frozenset()))[1]
        for port in before - ports:
            self._map.drop(_key(netns.cookie, port))
        try:
            for port in ports - before:
                self._map.put(_key(netns.cookie, port), _YES)
        except (KernelError, OSError) as error:
            log.error("TCP probes of a pod succeed whether its ports are open or not: %s", error)
            ports = before & ports
        self._pods.pop(netns.cookie, None)
        if ports:
            self._pods[netns.cookie] = netns, ports
            self._any.set()
            self._look(netns, ports)

    def forget(self, cookie: int) -> None:
        """Watch the pod with this network namespace no longer."""
        for port in self._pods.pop(cookie, (None, frozenset()))[1]:
            self._map.drop(_key(cookie, port))

    async def some(self) -> None:
        """Wait until there is a port to look at."""
        if not self._pods:
            self._any.clear()
        await self._any.wait()

    def look(self) -> Steps[None]:
        """Compare all of them with what listens, a pod a step; to be done every LOOK_SECONDS."""
        for cookie in list(self._pods):
            if cookie in self._pods:  # it may be gone since, with its descriptor
                self._look(*self._pods[cookie])
            yield

    def prune(self, known: Collection[int]) -> int:
        """Remove what an earlier daemon left of pods whose network namespaces are not *known*;
        return how much it was.
        """
        stale = [key for key, _ in self._map.items() if struct.unpack_from("=Q", key)[0] not in known]
        return sum(self._map.drop(key) for key in stale)

    def _look(self, netns: PodNetns, ports: frozenset[int]) -> None:
        try:
            there = sock_diag.listening(netns.fd, ports)
        except OSError as error:
            log.warning("what listens in a pod is not known: %s", error)
            return
        for port in ports:
            key = _key(netns.cookie, port)
            value = _YES if port in there else _NO
            if self._map.get(key) != value:
                self._map.put(key, value)


def _key(cookie: int, port: int) -> bytes:
    return bytes(layout.PortKey(cookie, layout.INBOUND, port))
