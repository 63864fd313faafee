"""A call: what an exchange whose content-type is gRPC's says beyond HTTP.

Made when the request's head is whole (:func:`call_of`), told by the codecs of what passes, and read
when the exchange is observed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from nodeagent.errors import DEADLINE, UPSTREAM_RESET, Reason
from nodeagent.proxy.grpc import status
from nodeagent.proxy.grpc.messages import Messages
from nodeagent.proxy.grpc.timeout import ROUNDED, parse, written
from nodeagent.proxy.grpc.web import WebMessages
from nodeagent.proxy.http.fields import Field

if TYPE_CHECKING:
    from nodeagent.telemetry.cells import MessageCell

_GRPC: Final = b"application/grpc"
_WEB: Final = b"-web"
_TEXT: Final = b"-text"
_ENDS: Final = b"+; \t"
_TIMEOUT: Final = b"grpc-timeout"


@mypyc_attr(allow_interpreted_subclasses=True)
class Call:
    """A gRPC call over HTTP/2."""

    status = ""
    """With what it ended, as a label; empty: nobody said it yet."""
    timeout = -1.0
    """Seconds that its client waits for it; -1: as long as it takes."""
    timer: asyncio.TimerHandle | None = None
    """Runs until then."""
    requests = 0
    responses = 0
    """Messages that passed."""
    cell: MessageCell | None = None
    """Where they are counted as they pass."""

    def __init__(self) -> None:
        self._asked = Messages()
        self._answered = Messages()

    def asked(self, piece: bytes) -> None:
        """A *piece* of the request's body passes."""
        self._count(self._asked.feed(piece), 0)

    def replied(self, piece: bytes) -> None:
        """A *piece* of the answer's body passes."""
        self._count(0, self._answered.feed(piece))

    def told(self, fields: list[Field]) -> None:
        """*fields* of the answer, its head's or its trailers, pass."""
        found = status.told(fields)
        if found:
            self.status = found

    def ended(self, http: int) -> str:
        """Return the status with which the call has ended, whose answer has the status *http*, 0: none."""
        return self.status or status.of_http(http)

    def refusal(self, reason: Reason) -> list[Field] | None:
        """Return the fields of an answer without a body that says *reason*; None: HTTP's answer says it."""
        return status.trailers_only(reason)

    def waits(self, fields: list[Field]) -> float:
        """Return for how many seconds the client waits, by the request's *fields*; -1: it does not say."""
        for name, value in fields:
            if name == _TIMEOUT:
                self.timeout = parse(value)
        return self.timeout

    def why(self, reason: Reason, elapsed: float) -> Reason:
        """Return why the call ends *elapsed* seconds after it came, where *reason* is what was seen: an
        endpoint resets what its client, by the time that went on, waits for no longer, a moment before
        the proxy's own timer.
        """
        over = 0 <= self.timeout <= elapsed + ROUNDED
        return DEADLINE if over and reason.code == UPSTREAM_RESET.code else reason

    def shortened(self, fields: list[Field], elapsed: float) -> list[Field]:
        """Return the request's *fields* as they go on *elapsed* seconds after the call came: with what
        is left of its time.
        """
        if self.timeout < 0:
            return fields
        left = (_TIMEOUT, written(max(self.timeout - elapsed, 0.0)))
        return [left if name == _TIMEOUT else (name, value) for name, value in fields]

    def _count(self, requests: int, responses: int) -> None:
        self.requests += requests
        self.responses += responses
        cell = self.cell
        if cell is not None:
            cell.requests += requests
            cell.responses += responses


class WebCall(Call):
    """A gRPC-Web call, over any version of HTTP: a browser reads its status in the answer's body."""

    def __init__(self, *, text: bool) -> None:
        Call.__init__(self)
        self._web_asked = WebMessages(text=text)
        self._web_answered = WebMessages(text=text)

    def asked(self, piece: bytes) -> None:
        self._count(self._web_asked.feed(piece), 0)

    def replied(self, piece: bytes) -> None:
        self._count(0, self._web_answered.feed(piece))

    def ended(self, http: int) -> str:
        return self.status or self._web_answered.status() or status.of_http(http)

    def refusal(self, reason: Reason) -> list[Field] | None:
        return None


def call_of(content_type: bytes, protocol: str) -> Call | None:
    """Return the call that a request of *protocol* (``HTTP/2``) with *content_type* is; None: it is none."""
    if not content_type.startswith(_GRPC):
        return None
    kind = content_type[len(_GRPC) :]
    if not kind or kind[0] in _ENDS:
        return Call() if protocol == "HTTP/2" else None
    if not kind.startswith(_WEB):
        return None
    kind = kind[len(_WEB) :]
    text = kind.startswith(_TEXT)
    kind = kind[len(_TEXT) :] if text else kind
    return WebCall(text=text) if not kind or kind[0] in _ENDS else None
