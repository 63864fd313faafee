"""The side that takes streams of HBONE in: each is accepted as a connection of the identity that its
TLS proved, to a port of the pod that was asked. Theory: ``proxy/shared/link.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodeagent.errors import HBONE_ELSEWHERE, HBONE_MALFORMED, Reason
from nodeagent.istio import INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.hbone.heads import Asked, read_connect
from nodeagent.proxy.hbone.stream import HboneStream, refuse
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2.sender import RESET_COST
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.shared.heads import Carried
from nodeagent.proxy.shared.server import SharedDownstream
from nodeagent.proxy.shared.stream import SharedStream

_OWN_PORTS: Final = (OUTBOUND_PORT, INBOUND_PORT, TUNNEL_PORT)
"""The agent's own in the pod: a stream that led there would come back, without end."""

Lead = Callable[[HboneStream, int], None]
"""Accepts what a stream carries to a port of the pod."""


class HboneDownstream(SharedDownstream):
    """The protocol of an accepted connection by which another proxy sends streams."""

    def __init__(self, context: Context, ledger: Ledger, connection: Connection, lead: Lead) -> None:
        SharedDownstream.__init__(self, context, ledger, connection, _enters_nowhere)
        self._lead = lead

    def begin(self) -> None:
        SharedDownstream.begin(self)
        self._connection.protocol = "hbone"

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        if stream.head_read:
            return  # trailers, of which a tunnel has none: its end follows
        stream.head_read = True
        asked = read_connect(fields)
        if asked is None:
            self._refuse(stream, HBONE_MALFORMED)
        elif not self._is_here(asked):
            self._refuse(stream, HBONE_ELSEWHERE)
        elif self._refuses():
            self.session.refuse(stream)
        else:
            carried = HboneStream(self, stream)
            self.streams[stream.number] = carried
            self._lead(carried, asked.port)
            if stream.number not in self.streams:
                self._refused += 1

    def _is_here(self, asked: Asked) -> bool:
        """Say whether *asked* is of the pod that the connection came to."""
        return asked.address == self._connection.target.address and asked.port not in _OWN_PORTS

    def _refuse(self, stream: Http2Stream, reason: Reason) -> None:
        """Raises SessionError where the peer has asked for too much that is none."""
        refuse(self, stream, reason)
        self._connection.refused(reason)
        self._ledger.count_refused(reason)
        self.session.spend(RESET_COST)


def _enters_nowhere(stream: SharedStream, inside: Carried) -> None:
    """Streams of HBONE are accepted by their head."""
