"""TLS as a layer between a plain transport and a protocol: an SSLObject over two memory BIOs.

Towards the protocol above it looks like a transport. On this interpreter this is 1.5 x as fast as
the event loop's own TLS transports, and it can start on bytes that were already read.

A peer's records are worked off in portions, one a turn of the loop, with reading paused meanwhile:
a quarter of a megabyte that came at once may be ten thousand records. Those without data (key
updates above all, which OpenSSL takes without end) are few on a connection of good faith, and end
any other.
"""

from __future__ import annotations

import asyncio
import collections
import ssl
from collections.abc import Callable
from typing import Any

from nodeagent.proxy.tls.records import Records
from nodeagent.proxy.transport import Receiver, Transport

READ_BYTES = 65536
RECORDS_A_TURN = 64
EMPTY_RECORDS = 64
"""So many records may carry no data: handshake, tickets, key updates, alerts."""
RECORDS_A_KEY = 1 << 16
"""And one more for so many that do: a key is good for 2^24.5 of them (RFC 8446 section 5.5)."""


class TlsStream:
    """A TLS session. ``ready(stream)`` runs once after the handshake and must set ``protocol``;
    ``failed(error)`` runs instead when the handshake fails or the transport is lost first. A client tells
    *server_name*, empty: none.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        ready: Callable[[TlsStream], None],
        failed: Callable[[Exception], None],
        server_name: str = "",
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.session = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name or None
        )
        self._ready = ready
        self._failed = failed
        self._established = False
        self._eof_sent = False
        self._eof_received = False
        self._closing = False
        self._reading = True
        self._held: collections.deque[bytes] = collections.deque()
        self._records = Records()
        self._came = 0
        self._filled = 0
        """Records that came, and those of them that held data, which was read."""
        self._behind = False
        self._scheduled = False
        """Records wait, and the transport is paused; the loop's next turn goes on with them."""
        self._broken: Exception | None = None
        self.protocol: Receiver | None = None
        self.transport: Transport

    # -- towards the transport below (asyncio.Protocol) --

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self._handshake()

    def data_received(self, data: bytes) -> None:
        records = self._records
        records.waiting = records.waiting + data if records.waiting else data
        if not self._behind:
            self._work()

    def eof_received(self) -> bool:
        if not self._eof_received:
            # FIN without close_notify is a truncation (RFC 8446 section 6.1), not an end: it is
            # passed on as an abort.
            self._broken = ConnectionResetError("the peer's stream was cut off: FIN without close_notify")
            self.abort()
        return not self._closing

    def connection_lost(self, error: Exception | None) -> None:
        if self._established:
            protocol = self.protocol
            self.protocol = None
            if protocol is not None:
                protocol.connection_lost(error or self._broken)
        else:
            self._fail(error or ConnectionResetError("the peer closed the connection during the TLS handshake"))

    def pause_writing(self) -> None:
        if self.protocol is not None:
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        if self.protocol is not None:
            self.protocol.resume_writing()

    # -- towards the protocol above (asyncio.Transport) --

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        self.session.write(data)
        self.transport.write(self._outgoing.read())

    def write_eof(self) -> None:
        """Send close_notify: this direction ends, the other goes on (RFC 8446 section 6.1)."""
        if self._eof_sent or self._closing:
            return
        self._eof_sent = True
        self._hold_unread()
        self._close_notify()
        asyncio.get_running_loop().call_soon(self._read)  # the peer's own end may have been met on the way

    def close(self) -> None:
        if self._closing:
            return
        if self._established and not self._eof_sent:
            self._close_notify()
        self._closing = True
        self.transport.close()

    def abort(self) -> None:
        self._closing = True
        self.transport.abort()

    def is_closing(self) -> bool:
        return self._closing or bool(self.transport.is_closing())

    def pause_reading(self) -> None:
        self._reading = False
        if not self._behind:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._closing:
            return
        self._reading = True
        if self._behind:
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self.transport.resume_reading()
        if self._incoming.pending or self.session.pending() or self._eof_sent:
            asyncio.get_running_loop().call_soon(self._read)

    def get_extra_info(self, name: str) -> Any:  # as the transport's below
        return self.transport.get_extra_info(name)

    def set_protocol(self, protocol: Receiver) -> None:
        self.protocol = protocol

    # -- the session --

    def _work(self) -> None:
        """Work off a portion of what came; the rest in the loop's next turn, or when the protocol above reads again."""
        if self._reading:
            portion, count = self._records.take(RECORDS_A_TURN)
            self._came += count
            self._incoming.write(portion)
            if self._established:
                self._read()
            else:
                self._handshake()
            empty = self._came - self._filled
            if self._reading and empty > EMPTY_RECORDS + self._filled // RECORDS_A_KEY and not self._closing:
                self._broken = ConnectionAbortedError(
                    f"the peer sent {empty} TLS records without data: key updates or the like"
                )
                self.abort()
        if self._closing:
            return
        behind = self._records.ready()
        if behind != self._behind:
            self._behind = behind
            if self._reading:
                (self.transport.pause_reading if behind else self.transport.resume_reading)()
        if behind and self._reading and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        if self._behind and not self.is_closing():
            self._work()

    def _handshake(self) -> None:
        try:
            self.session.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except (ssl.SSLError, OSError) as error:
            self._send()
            self._fail(error)
            self.abort()
            return
        self._established = True
        self._send()
        self._ready(self)
        if self._incoming.pending and not self._closing and self.protocol is not None:
            self._read()

    def _fail(self, error: Exception) -> None:
        failed = self._failed
        self._failed = _ignore
        failed(error)

    def _read(self) -> None:
        read = self.session.read
        pending = self.session.pending
        held = self._held
        try:
            while self._reading and not self._closing:
                protocol = self.protocol
                if protocol is None:
                    return  # the transport is lost, and so is what came last
                if held:
                    data = held.popleft()
                else:
                    data = read(READ_BYTES)
                    if not data:
                        self._peer_ended()
                        return
                    self._filled += 1
                protocol.data_received(data)
                if not (pending() or self._incoming.pending or held):
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_ended()
            return
        except (ssl.SSLError, OSError) as error:
            self._broken = error
            self.abort()
            return
        if self._outgoing.pending:
            self._send()

    def _peer_ended(self) -> None:
        if self._eof_received:
            return
        self._eof_received = True
        if self.protocol is not None and not self.protocol.eof_received() and not self._closing:
            self.close()

    def _hold_unread(self) -> None:
        """Decrypt what came but was not taken yet: SSL_shutdown reads on by itself, and would throw it away."""
        try:
            while data := self.session.read(READ_BYTES):
                self._held.append(data)
                self._filled += 1
        except (ssl.SSLError, OSError):
            pass  # nothing more now; what is wrong with it, _read meets again

    def _close_notify(self) -> None:
        try:
            self.session.unwrap()
        except (ssl.SSLError, OSError):
            pass  # the alert is in the outgoing BIO; the peer's own comes through _read
        self._send()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data:
            self.transport.write(data)


def _ignore(error: Exception) -> None:
    """A handshake fails once; what the transport says afterwards is known already."""
