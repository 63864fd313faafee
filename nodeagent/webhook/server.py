"""The HTTPS side: takes reviews, gives answers, and holds no more of its clients than the bounds
say, whoever they are.

aiohttp speaks HTTP; connections are accepted here, because it bounds neither their number nor the
time of their handshakes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from nodeagent.errors import ControlError
from nodeagent.identity.ca import ServerCertificate
from nodeagent.identity.tls import load_chain
from nodeagent.webhook.review import ENTRIES, Admission, BadReviewError, Entry, Review, answer, parse

log = logging.getLogger("nodeagent.webhook")
Decide = Callable[[Review, Entry], Admission]
Count = Callable[[str, str], None]
"""Takes a result and its reason."""
THREADS: Final = 2
"""So that a review that takes long does not hold up all others; each may hold some ten times a body's size."""
PATHS: Final = {f"/inject/{entry}": entry for entry in ENTRIES}


@dataclass(frozen=True, slots=True)
class WebhookLimits:
    """Bounds on what clients may make the webhook hold; a review that the API server sends has at most about 3 MiB."""

    connections: int = 256
    """Open at a time. Beyond it, the one that has waited longest for its next request is closed."""
    body_bytes: int = 8 << 20
    held_bytes: int = 64 << 20
    """Of the bodies of all reviews together, as far as they have come."""
    handshake_seconds: float = 5.0
    body_seconds: float = 5.0
    """From a request's head to the end of its body: the API server waits ten seconds for the answer."""
    idle_seconds: float = 75.0
    """For the next request's head, from the answer before."""
    grace_seconds: float = 5.0
    """For requests under way when the server ends."""


class WebhookServer:
    """The HTTPS server that takes admission reviews. Use :meth:`start`; :meth:`stop` ends it.

    *decide* judges a review, in a thread of its own; *count* takes each answer's result and reason;
    *limits* are the bounds on what clients may hold.
    """

    def __init__(self, decide: Decide, count: Count, limits: WebhookLimits | None = None) -> None:
        self._decide = decide
        self._count = count
        self._limits = limits or WebhookLimits()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["http/1.1"])
        self._held = 0
        self._threads = ThreadPoolExecutor(THREADS, "review")
        self._busy: set[object] = set()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order in which they began
        self._listener: socket.socket
        self._accepting: asyncio.Task[None]
        self._runner: web.AppRunner
        self.port = 0

    def use(self, certificate: ServerCertificate) -> None:
        """Show *certificate* to who connects from now on; connections that are open stay so."""
        load_chain(self._context, certificate.chain_pem, certificate.key_pem)

    async def start(self, address: str, port: int) -> None:
        """Listen on *address* and *port* (0: any free one; ``port`` says which). Raises
        ControlError when the address cannot be had.
        """
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._respond)
        limits = self._limits
        # A compressed body is refused: unpacked, it could be of any size.
        self._runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=1.0,
            shutdown_timeout=limits.grace_seconds,
        )
        await self._runner.setup()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, port), family=family, backlog=limits.connections)
        except OSError as error:
            raise ControlError(f"address {address} port {port}: {error.strerror}: is it in use?") from None
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        """Accept no more, let reviews under way end within ``grace_seconds``, then close."""
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        self._listener.close()
        for handshake in list(self._handshakes):
            handshake.cancel()
        await self._runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.error("cannot accept: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            if self._make_room():
                task = asyncio.create_task(self._shake_hands(connection))
                self._handshakes[task] = None
                task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            else:
                connection.close()

    def _make_room(self) -> bool:
        """Say whether another connection may come, having sent away one that only waits, or does
        not finish its handshake, if need be.
        """
        open_ones = self._server.connections
        if len(open_ones) + len(self._handshakes) < self._limits.connections:
            return True
        waiting = (handler.transport for handler in open_ones if handler not in self._busy)
        if victim := next(
            (transport for transport in waiting if transport is not None and not transport.is_closing()), None
        ):
            victim.abort()
        elif handshake := next(iter(self._handshakes), None):
            handshake.cancel()
            del self._handshakes[handshake]
        else:
            return False
        return True

    async def _shake_hands(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, TimeoutError) as error:
            # A client that does not trust the certificate says so here, and its operator wants to
            # know.
            log.warning("TLS handshake failed: %s", str(error) or type(error).__name__)

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None
        return server

    async def _respond(self, request: web.Request) -> web.Response:
        self._busy.add(request.protocol)
        try:
            return await self._inject(request)
        except BadReviewError as error:
            log.warning("refused with status %d: %s", error.status, error)
            self._count("refused", error.reason)
            return web.Response(status=error.status, text=f"{error}\n")
        finally:
            self._busy.discard(request.protocol)

    async def _inject(self, request: web.Request) -> web.Response:
        """Answer a review. Raises BadReviewError."""
        entry = PATHS.get(request.path)
        if entry is None:
            raise BadReviewError(404, "path", f"no such path; there is: {' '.join(PATHS)}")
        if request.method != "POST":
            raise BadReviewError(405, "method", f"{request.path} takes POST")
        body = bytearray()
        try:
            await self._receive(request, body)
            # Another thread: a large pod takes a while, and the others' bodies and handshakes need
            # not wait.
            review, admission = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._judge, bytes(body), entry
            )
        finally:
            self._held -= len(body)
        log.info("%r: %s%s", review.name, admission.result, f": {admission.text}" if admission.reason else "")
        self._count(admission.result, admission.reason)
        return web.Response(body=answer(review, admission), content_type="application/json")

    def _judge(self, body: bytes, entry: Entry) -> tuple[Review, Admission]:
        review = parse(body)
        return review, self._decide(review, entry)

    async def _receive(self, request: web.Request, body: bytearray) -> None:
        """Append the request's body to *body*; what is there counts as held. Raises BadReviewError."""
        if (
            request.content_type != "application/json"
            or request.headers.get("Content-Encoding", "identity") != "identity"
        ):
            raise BadReviewError(
                415,
                "content_type",
                f"Content-Type: application/json is expected, not compressed, not {request.content_type!r:.100}",
            )
        length = request.content_length
        if length is None:
            raise BadReviewError(411, "malformed", "a body needs a Content-Length")
        if length > self._limits.body_bytes:
            raise BadReviewError(
                413, "too_large", f"a review of {length} bytes; at most {self._limits.body_bytes} are allowed"
            )
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in request.content.iter_any():
                    body += piece
                    self._held += len(piece)
                    if self._held > self._limits.held_bytes:
                        raise BadReviewError(503, "busy", "too many reviews at once")
        except TimeoutError:
            raise BadReviewError(408, "slow", f"the body did not come within {self._limits.body_seconds:g} s") from None
