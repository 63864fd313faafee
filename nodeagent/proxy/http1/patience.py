"""How long the two sides of an HTTP connection may take: for a request's head, its body, the
answer, and between requests.
"""

from __future__ import annotations

from nodeagent.config import Timeouts
from nodeagent.errors import DOWNSTREAM_TIMEOUT, REQUEST_TIMEOUT
from nodeagent.proxy.http1.downstream import HttpDownstream
from nodeagent.proxy.http1.exchange import Exchange


def enforce(codec: HttpDownstream, now: float, timeouts: Timeouts) -> None:
    """Time out what has not moved for too long; *now* is monotonic. Called a few times a second for each connection."""
    exchange = codec.current
    if exchange is None:
        done = codec.connection.requests
        if not codec.reading_head or done != codec.swept:
            codec.swept, codec.head_since = done, now
        elif now - codec.head_since > timeouts.head:
            codec.time_out()
        if now - codec.touched > timeouts.idle:
            codec.close()
    elif exchange.answered:
        _enforce_answer(codec, exchange, now, timeouts)
    elif not exchange.request_complete and not codec.paused:
        if _over(timeouts.stream_idle, now - codec.touched):
            codec.time_out()
    elif _over(timeouts.request, now - max(exchange.since, codec.touched)):
        exchange.give_up(REQUEST_TIMEOUT)


def _enforce_answer(codec: HttpDownstream, exchange: Exchange, now: float, timeouts: Timeouts) -> None:
    """An answer may take as long as it moves, or for ever."""
    if exchange.sent != codec.swept:
        codec.swept, codec.touched = exchange.sent, now
    elif exchange.finished:  # the rest of the request's body is read and dropped
        if now - codec.touched > timeouts.idle:
            codec.close()
    elif _over(timeouts.stream_idle, now - codec.touched):
        exchange.give_up(DOWNSTREAM_TIMEOUT)


def _over(bound: float | None, seconds: float) -> bool:
    return bound is not None and seconds > bound
