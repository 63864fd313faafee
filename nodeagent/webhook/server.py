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
from nodeagent.telemetry.http_server import EVERYWHERE
from nodeagent.webhook.clients import Clients, Doing, WebhookClient
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
    """Open at a time. Beyond it, one of the client's with the most is closed (webhook/clients.py)."""
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
        self._clients = Clients(self._limits.connections)
        self._of: dict[web.RequestHandler, WebhookClient] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listener: socket.socket
        self._accepting: asyncio.Task[None]
        self._runner: web.AppRunner
        self.port = 0

    def use(self, certificate: ServerCertificate) -> None:
        """Show *certificate* to who connects from now on; connections that are open stay so."""
        load_chain(self._context, certificate.chain_pem, certificate.key_pem)

    async def start(self, address: str, port: int) -> None:
        """Listen on *address* (0.0.0.0 or ``::``: all of both families, as far as there are) and *port* (0: any free
        one; ``port`` says which). Raises ControlError when the address cannot be had.
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
        everywhere = address in EVERYWHERE and socket.has_dualstack_ipv6()
        where = "::" if everywhere else address
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        try:
            self._listener = socket.create_server(
                (where, port), family=family, backlog=limits.connections, dualstack_ipv6=everywhere
            )
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
                connection, address = await loop.sock_accept(self._listener)
            except OSError as error:
                log.error("cannot accept: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            if len(self._clients) >= self._limits.connections:
                self._forget_closed()
            client = self._clients.admit(address[0])
            if client is None:
                connection.close()
                continue
            task = asyncio.create_task(self._shake_hands(connection, client))
            client.close = task.cancel
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, client: WebhookClient) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler = self._server()
        self._of[handler] = client
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=1.0,
            )
        except BaseException as error:
            self._clients.leave(client)
            del self._of[handler]
            if not isinstance(error, OSError | TimeoutError):
                raise
            # A client that does not trust the certificate says so here, and its operator wants to
            # know.
            log.warning("TLS handshake failed: %s", str(error) or type(error).__name__)
            return
        client.close = transport.abort
        if client.doing is Doing.GREETING:
            self._clients.now(client, Doing.WAITING)

    def _forget_closed(self) -> None:
        for handler, client in list(self._of.items()):
            if handler.transport is None and client.doing is not Doing.GREETING:
                self._clients.leave(client)
                del self._of[handler]

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None
        return server

    async def _respond(self, request: web.Request) -> web.Response:
        client = self._of[request.protocol]
        self._clients.now(client, Doing.SENDING)
        try:
            return await self._inject(request, client)
        except BadReviewError as error:
            log.warning("refused with status %d: %s", error.status, error)
            self._count("refused", error.reason)
            return web.Response(status=error.status, text=f"{error}\n")
        finally:
            self._clients.now(client, Doing.WAITING)

    async def _inject(self, request: web.Request, client: WebhookClient) -> web.Response:
        """Answer a review. Raises BadReviewError."""
        entry = PATHS.get(request.path)
        if entry is None:
            raise BadReviewError(404, "path", f"no such path; there is: {' '.join(PATHS)}")
        if request.method != "POST":
            raise BadReviewError(405, "method", f"{request.path} takes POST")
        body = bytearray()
        try:
            await self._receive(request, body)
            self._clients.now(client, Doing.JUDGED)
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
