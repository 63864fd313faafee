"""A worker's side of an enrolled pod: its sockets, its certificate's TLS contexts, what it holds
open.

Sockets for connections out of a pod's network namespace come from control, which alone may enter
it; a small stock per pod and family hides the round trip.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from nodeagent.identity.tls import Contexts
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.http2.held import HeldBytes
from nodeagent.vocabulary import Family, PodUid

LOW_WATER: Final = 4
SMALLEST: Final = 8
LARGEST: Final = 128
CERTIFICATE_SECONDS: Final = 5.0
"""Since a pod was captured: so long its connections wait for its first certificate. Later ones fail at once."""


class SocketStock:
    """Unconnected TCP sockets of one pod and family; asks for more before it is empty, and doubles
    what it asks for when it ran dry.
    """

    def __init__(self, ask: Callable[[int], None]) -> None:
        self._ask = ask
        self._sockets: collections.deque[socket.socket] = collections.deque()
        self._waiting: collections.deque[asyncio.Future[socket.socket]] = collections.deque()
        self._asked = 0
        self._batch = SMALLEST

    async def take(self) -> socket.socket:
        """Return an unconnected, non-blocking socket in the pod's network namespace."""
        if len(self._sockets) <= LOW_WATER:
            self._refill()
        if self._sockets:
            return self._sockets.popleft()
        self._batch = min(self._batch * 2, LARGEST)
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if self._asked < len(self._waiting):
            self._refill(force=True)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.add([waiter.result()])  # it came in the moment in which its taker gave up
            raise

    def add(self, sockets: list[socket.socket]) -> None:
        """Take in what control made."""
        self._asked = max(0, self._asked - len(sockets))
        for fresh in sockets:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(fresh)
                    break
            else:
                self._sockets.append(fresh)

    def again(self) -> None:
        """What was asked for may be lost with the control that was asked: ask its successor."""
        self._asked = 0
        while self._asked < max(len(self._waiting), self._batch - len(self._sockets)):
            self._refill(force=True)

    def refused(self) -> None:
        """Control could make none: nobody shall wait."""
        self._asked = 0
        self._fail("no socket could be made in the pod")

    def close(self) -> None:
        while self._sockets:
            self._sockets.popleft().close()
        self._fail("the pod is gone")

    def _fail(self, why: str) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(OSError(why))

    def _refill(self, *, force: bool = False) -> None:
        if not self._asked or force:
            self._asked += self._batch
            self._ask(self._batch)


class PodState:
    """An enrolled pod of this node."""

    __slots__ = (
        "_certified",
        "_patient_until",
        "connections",
        "cookie",
        "gone",
        "held",
        "identity",
        "named",
        "open",
        "routes",
        "routes_view",
        "stock",
        "streams",
        "tls",
        "uid",
    )

    def __init__(self, uid: PodUid, cookie: int, identity: str, ask: Callable[[Family, int], None]) -> None:
        self.uid = uid
        self.cookie = cookie
        self.identity = identity
        self.stock: dict[Family, SocketStock] = {
            4: SocketStock(lambda count: ask(4, count)),
            6: SocketStock(lambda count: ask(6, count)),
        }
        self.connections = 0
        self.held = HeldBytes()
        self.gone = False
        """It is no longer enrolled."""
        self.streams = 0
        """Requests under way on its connections of HTTP/2."""
        self.open: set[asyncio.Task[None]] = set()
        self.routes: dict[tuple[object, ...], Sequence[Hop]] = {}
        self.routes_view = -1
        self.named: set[tuple[str, int]] = set()
        """Addresses and ports without a Service that metrics know by name, see ``proxy/route.py``."""
        self.tls: Contexts | None = None
        self._certified = asyncio.Event()
        self._patient_until = monotonic() + CERTIFICATE_SECONDS

    def certify(self, tls: Contexts | None) -> None:
        """Show the certificate of *tls* from the next handshake on; who waits for the first one
        goes on. None: it has none (any more).
        """
        self.tls = tls
        if tls is not None:
            self._certified.set()

    async def certified(self) -> Contexts | None:
        """Return the pod's TLS contexts. A pod is captured before its first certificate is there:
        for that one is waited a while, once.
        """
        if self.tls is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patient_until - monotonic()):
                    await self._certified.wait()
        return self.tls
