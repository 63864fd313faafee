"""One request and its answer, from the first header line to the access-log record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nodeagent.errors import Reason
from nodeagent.proxy.http1.framing import BodyKind, Framing
from nodeagent.proxy.http1.headers import is_client_cert

if TYPE_CHECKING:
    from nodeagent.proxy.http1.downstream import HttpDownstream
    from nodeagent.proxy.http1.upstream import HttpUpstream
    from nodeagent.proxy.route import Route

NO_BODY: Final = 0
LENGTH_BODY: Final = 1
CHUNKED_BODY: Final = 2

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 section 9.2.2: may be sent again when a kept-alive upstream closed before a byte of the answer."""


class Exchange:
    """The state of one request on a downstream connection; made by the downstream codec, finished once."""

    # What most requests never change stays on the class: making an exchange is part of every
    # request's cost.
    body = NO_BODY
    http10 = False
    request_complete = False
    answered = False
    finished = False
    client_cert = False
    upgrade = False
    keep_alive = True
    forwarded_for = b""
    user_agent = b""
    pending: list[bytes] | None = None
    pending_bytes = 0
    received = 0
    sent = 0
    held: bytearray | None = None
    enough = 0
    arrived: asyncio.Future[None] | None = None
    answer_fields: tuple[tuple[str, str, str], ...] = ()
    status = 0
    tries = 0
    since = 0.0
    """When the request was complete and permitted, by the pipeline's clock."""
    route: Route | None = None
    upstream: HttpUpstream | None = None

    def __init__(
        self, downstream: HttpDownstream, method: bytes, target: bytes, host: bytes, lines: list[bytes], started: float
    ) -> None:
        self.downstream = downstream
        self.method, self.target, self.host, self.lines = method, target, host, lines
        self.started = started
        """By perf_counter, in seconds."""
        self.request_id = b""

    def adopt(self, framing: Framing, host: bytes, *, tunnels: bool) -> None:
        """Take over what *framing* decided, and with it the fields as they go on. *host* stands in
        for a missing Host: HTTP/1.0 may leave out what goes on as HTTP/1.1. Unless *tunnels*, no
        upgrade is offered on.
        """
        self.keep_alive = framing.keep_alive
        self.body = CHUNKED_BODY if framing.kind is BodyKind.CHUNKED else LENGTH_BODY if framing.length else NO_BODY
        self.upgrade = bool(framing.upgrade) and self.body == NO_BODY and tunnels
        kept = without(self.lines, lambda name: name.lower() in framing.hop_by_hop)
        if host:
            kept += (b"host", b": ", host, b"\r\n")
        if self.body == CHUNKED_BODY:
            kept += (b"transfer-encoding", b": ", b"chunked", b"\r\n")
        if self.upgrade:
            kept += (b"connection", b": ", b"upgrade", b"\r\n", b"upgrade", b": ", framing.upgrade, b"\r\n")
        self.lines = kept

    def header(self, name: str) -> str | None:
        """Return the value of the field *name* (lower case), several lines joined with a comma (RFC
        9110 section 5.3); None without it.
        """
        wanted, lines = name.encode("latin-1", "replace"), self.lines
        values = [lines[at + 2] for at in range(0, len(lines), 4) if lines[at].lower() == wanted]
        return b",".join(values).decode("latin-1") if values else None

    def head(self, route: Route) -> bytes:
        """Return the request's head as it goes upstream on *route*, written anew from what was
        parsed.

        What a client says of certificates itself is left out wherever the request goes, as Istio
        does (SANITIZE).
        """
        lines = self.lines
        if self.client_cert:
            lines = without(lines, is_client_cert)
        if route.single and not self.upgrade:
            lines = [*lines, b"connection", b": ", b"close", b"\r\n"]
        return b"".join((self.method, b" ", self.target, b" HTTP/1.1\r\n", *lines, route.head_tail))

    def hold(self, enough: int) -> asyncio.Future[None]:
        """Keep the body as it comes, unframed, until :meth:`let_go`.

        The future is done when *enough* bytes of it are there, when it is complete, or when nobody
        waits for its answer any more.
        """
        held, last = bytearray(), []
        for piece in self.pending or ():  # a request that waited for its turn
            size, data = (
                (int(piece[: piece.index(b"\r")], 16), piece[piece.index(b"\n") + 1 : -2])
                if self.body == CHUNKED_BODY
                else (len(piece), piece)
            )
            if size:
                held += data
            else:
                last.append(piece)
        self.held, self.pending, self.pending_bytes, self.enough = held, last, 0, enough
        self.downstream.resume_reading("body")  # what came before anybody waited may have filled what is kept otherwise
        self.arrived = asyncio.get_running_loop().create_future()
        self.progressed()
        return self.arrived

    def progressed(self) -> None:
        """Tell who waits for the body how far it is."""
        waiter = self.arrived
        if (
            waiter is not None
            and not waiter.done()
            and (self.finished or self.request_complete or len(self.held or b"") >= self.enough)
        ):
            waiter.set_result(None)

    def let_go(self) -> bytes:
        """Return what was held of the body; it goes on with the rest."""
        held, self.held, self.arrived = bytes(self.held or b""), None, None
        if held:
            framed = b"%x\r\n%b\r\n" % (len(held), held) if self.body == CHUNKED_BODY else held
            self.pending = [framed, *(self.pending or ())]
            self.pending_bytes = sum(map(len, self.pending))
        return held

    def replayable(self) -> bool:
        """Say whether the request may be sent once more: nothing was answered and nothing of a body was lost."""
        return self.tries < 2 and not self.answered and self.body == NO_BODY and self.method in IDEMPOTENT

    def give_up(self, reason: Reason) -> None:
        """Wait for the upstream no longer."""
        if not self.finished and self.upstream is not None:
            self.upstream.abandon()
        self.refuse(reason)

    def refuse(self, reason: Reason) -> None:
        """Answer on the proxy's own account, or cut the connection when an answer has begun."""
        if not self.finished:
            self.downstream.refuse(self, reason)


def without(lines: list[bytes], unwanted: Callable[[bytes], bool]) -> list[bytes]:
    """Return header *lines* (name, ``: ``, value, CRLF by fours) without the fields whose name is *unwanted*."""
    kept: list[bytes] = []
    for at in range(0, len(lines), 4):
        if not unwanted(lines[at]):
            kept += lines[at : at + 4]
    return kept


def with_fields(lines: list[bytes], fields: tuple[tuple[str, str, str], ...]) -> list[bytes]:
    """Return header *lines* with *fields* (lower-case name, value, how: add, set, add_if_absent or
    set_if_present) put one after the other.
    """
    for name, value, how in fields:
        key = name.encode("latin-1")
        rest = without(lines, _named(key))
        present = len(rest) < len(lines)
        if (how == "add_if_absent" and present) or (how == "set_if_present" and not present):
            continue
        kept = rest if how in ("set", "set_if_present") else lines
        lines = [*kept, key, b": ", value.encode("latin-1"), b"\r\n"]
    return lines


def _named(key: bytes) -> Callable[[bytes], bool]:
    return lambda name: name.lower() == key
