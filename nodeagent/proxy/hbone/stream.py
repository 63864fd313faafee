"""A stream of HBONE as its server has it: its client waits for the answer before it says anything.

So 200 is said as soon as somebody reads, which is when the connection is let in, or, where nothing
of it has to be seen before, when the application has been reached; what is refused until then has
the status of its reason.
"""

from __future__ import annotations

from typing import Final

from nodeagent.errors import Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.hbone.heads import answer_block
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.shared.heads import TAKEN
from nodeagent.proxy.shared.link import Link
from nodeagent.proxy.shared.stream import SharedStream

FORBIDDEN: Final = 401
"""As ztunnel answers what a policy forbids."""


def status_for(reason: Reason | None) -> int:
    """Return the status that says to another proxy why a stream is not carried, for *reason*."""
    status = reason.status if reason is not None else 503
    return FORBIDDEN if status == 403 else max(status, 400)


class HboneStream(SharedStream):
    """One that was asked for."""

    def __init__(self, link: Link, stream: Http2Stream) -> None:
        SharedStream.__init__(self, link, stream, "tcp", link.held)
        self._link = link
        self.connection: Connection | None = None
        """What it carries; it knows why it was refused."""
        self._answered = False

    def accept(self) -> None:
        """Let the client go ahead, if it was not told before."""
        if not self._answered and not self.is_closing():
            self._answered = True
            self._link.session.send_head(self.stream, TAKEN, ended=False)
            self._link.soon()

    def write(self, data: bytes) -> None:
        self.accept()
        SharedStream.write(self, data)

    def write_eof(self) -> None:
        self.accept()
        SharedStream.write_eof(self)

    def resume_reading(self) -> None:
        self.accept()
        SharedStream.resume_reading(self)

    def abort(self) -> None:
        if not self._answered and not self.is_closing():
            self._answered = True
            refuse(self._link, self.stream, self.connection.reason if self.connection is not None else None)
        SharedStream.abort(self)


def refuse(link: Link, stream: Http2Stream, reason: Reason | None) -> None:
    """Answer *stream* that it is not carried, for *reason*, and read no more of it."""
    session = link.session
    session.send_head(stream, answer_block(status_for(reason)), ended=True)
    session.reset(stream, wire.NO_ERROR)
    link.soon()
