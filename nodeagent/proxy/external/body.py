"""A request's body, as far as an authorizer wants to see it: held back until enough of it has come,
then forwarded as if nothing had been.
"""

from __future__ import annotations

from nodeagent.extension_providers import RequestBody
from nodeagent.proxy.external.model import Body
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.fields import without


async def beginning(exchange: Exchange, wanted: RequestBody) -> Body | None:
    """Return what of the body of *exchange* may be shown; None: it has none, or the client did not
    wait.

    Partial: there is more of it than *wanted* lets be shown. No more is held meanwhile than that
    and what one read brings.
    """
    if not exchange.length:
        return None
    limit = wanted.max_request_bytes
    arrived = exchange.hold(limit if wanted.allow_partial_message else limit + 1)
    _invite(exchange)
    await arrived
    held = exchange.let_go()
    return None if exchange.finished else Body(held[:limit], len(held) > limit or not exchange.request_complete)


def _invite(exchange: Exchange) -> None:
    """Say what a client waits for that asks before it sends its body (RFC 9110 section 10.1.1): the
    application cannot say it yet.
    """
    expected = exchange.header("expect")
    if expected is None or expected.lower() != "100-continue" or exchange.protocol == "HTTP/1.0":
        return
    exchange.fields = without(exchange.fields, lambda name: name.lower() == b"expect")
    if not exchange.received and not exchange.request_complete:
        exchange.downstream.invite(exchange)
