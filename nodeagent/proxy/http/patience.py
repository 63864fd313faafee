"""How long the two sides of an HTTP connection may take: for a request's head, its body, the
answer, and between requests.
"""

from __future__ import annotations

from typing import Final

from nodeagent.config import Timeouts
from nodeagent.errors import DOWNSTREAM_TIMEOUT, REQUEST_TIMEOUT
from nodeagent.proxy.http.exchange import Downstream, Exchange

RETIRING_SECONDS: Final = 60.0
"""How long a connection that is asked to end (a worker drains, a certificate was renewed) may idle: as
servers commonly keep one. A client that says nothing more would keep a whole daemon for an hour.
"""


def enforce(codec: Downstream, now: float, timeouts: Timeouts) -> None:
    """Time out what has not moved for too long; *now* is monotonic. Called a few times a second for each connection."""
    exchanges = codec.under_way()
    if not exchanges:
        _enforce_pause(codec, now, timeouts)
    for exchange in exchanges:
        if exchange.answered:
            _enforce_answer(codec, exchange, now, timeouts)
        elif not exchange.request_complete and not codec.held_back(exchange):
            if _over(timeouts.stream_idle, now - codec.moved(exchange)):
                codec.time_out(exchange)
        elif _over(timeouts.request, now - max(exchange.since, codec.moved(exchange))):
            exchange.give_up(REQUEST_TIMEOUT)


def _enforce_pause(codec: Downstream, now: float, timeouts: Timeouts) -> None:
    """Between requests a connection may idle for a while; a head that has begun must become whole."""
    done = codec.connection.requests
    if not codec.reading_head() or done != codec.swept:
        codec.swept = done
        codec.head_since = now
    elif now - codec.head_since > timeouts.head:
        codec.time_out(None)
    idle = min(timeouts.idle, RETIRING_SECONDS) if codec.retiring else timeouts.idle
    if now - codec.touched > idle:
        codec.close()


def _enforce_answer(codec: Downstream, exchange: Exchange, now: float, timeouts: Timeouts) -> None:
    """An answer may take as long as it moves, or for ever."""
    if exchange.sent != exchange.swept:
        exchange.swept = exchange.sent
        codec.move(exchange, now)
    elif exchange.finished:  # the rest of the request's body is read and dropped
        if now - codec.touched > timeouts.idle:
            codec.close()
    elif _over(timeouts.stream_idle, now - codec.moved(exchange)):
        exchange.give_up(DOWNSTREAM_TIMEOUT)


def _over(bound: float | None, seconds: float) -> bool:
    return bound is not None and seconds > bound
