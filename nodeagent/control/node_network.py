"""Which addresses are the node's own: what comes from there may be the kubelet, that asks pods whether
they are well.

Every address of the node's network namespace is one, not only the InternalIPs of its Node object:
on most networks the kubelet's questions come from the pod network's gateway, which is an address of
a bridge, or of the node's end of the pod's link. They are asked of the kernel and followed there,
for networks are made while pods are. No address of a pod is one, whatever anybody says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Final

from nodeagent.control.concern import Snapshot
from nodeagent.errors import KernelError
from nodeagent.parts import Parts
from nodeagent.places import own_addresses
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import Address

SETTLE_SECONDS: Final = 0.05
"""Between a change and the look for it: a link gets several addresses at once."""
log = logging.getLogger("nodeagent.control")


def node_addresses(own: Iterable[Address], internal: Iterable[Address], pods: Iterable[Address]) -> tuple[Address, ...]:
    """Return which addresses are the node's, in order: those of its namespace (*own*) and the
    InternalIPs that its Node object says (*internal*), but none of its *pods*.

    Where the object says some and none of them is among *own*, this process is not in the node's
    namespace (its pod has a network of its own): then *own* are its pod's.
    """
    here = frozenset(own)
    said = frozenset(internal)
    ours = here if not said or here & said else frozenset[Address]()
    return tuple(sorted((ours | said) - frozenset(pods)))


class NodeNetwork:
    """A concern: *tell* hears the node's addresses whenever they may have changed; *internal* gives
    the Node object's.
    """

    def __init__(self, tell: Callable[[Sequence[str]], None], internal: Callable[[], Iterable[Address]]) -> None:
        self._tell = tell
        self._internal = internal
        self._own: frozenset[Address] = frozenset()
        self._pods: frozenset[Address] = frozenset()

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Follow the kernel."""
        parts.start("the follower of the node's addresses", self._follow)
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """Tell the addresses, of which none is a pod's."""
        self._pods = frozenset(chain.from_iterable(pod.addresses for pod in snapshot.captured.values()))
        self.tell()

    def grown(self, snapshot: Snapshot) -> None:
        """Nothing of it is new."""

    def missing(self) -> list[str]:
        """A part that fails is named by itself."""
        return []

    def routes(self) -> Routes:
        """It tells nothing."""
        return {}

    def begin(self) -> None:
        """Tell the addresses of this moment; where the kernel cannot be asked, those of the Node object."""
        try:
            self.look()
        except KernelError as error:
            log.error("%s; the InternalIPs of its Node object count until it can", error)
            self.tell()

    def look(self) -> None:
        """Ask the kernel, and tell. Raises KernelError."""
        self._own = own_addresses.own_addresses()
        self.tell()

    def tell(self) -> None:
        """Tell what is known."""
        self._tell(self.addresses())

    def addresses(self) -> tuple[Address, ...]:
        """Return what is known."""
        return node_addresses(self._own, self._internal(), self._pods)

    async def _follow(self) -> None:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with own_addresses.watch() as watching:

            def happened() -> None:
                own_addresses.drain(watching)
                changed.set()

            loop.add_reader(watching.fileno(), happened)
            try:
                while True:
                    changed.clear()
                    self.look()
                    await changed.wait()
                    await asyncio.sleep(SETTLE_SECONDS)
            finally:
                loop.remove_reader(watching.fileno())
