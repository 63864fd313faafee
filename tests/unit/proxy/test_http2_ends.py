"""Whatever the two sides of an HTTP/2 connection do, in whatever order: every exchange ends once, is
counted once, and nothing of it is held afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodeagent.errors import REQUEST_TIMEOUT
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import rst_stream
from nodeagent.proxy.http2.upstream import REFUSED_SECONDS, Http2Upstream
from tests.unit.proxy.http2_wire import GET, OK, POST, Asking, Server
from tests.unit.proxy.test_http2_oracle import FROM_CLIENTS, FROM_SERVERS, Answer

WHICH = st.integers(0, 3)
"""Which of the exchanges under way."""
SIZES = st.sampled_from([0, 1, 1000, 70_000, 300_000])


def answer(server: Server, exchange: Exchange, size: int) -> None:
    if not exchange.answered:
        exchange.downstream.answer(exchange, 200, [], size or -1)


def empty(server: Server, exchange: Exchange, size: int) -> None:
    if not exchange.answered:
        exchange.downstream.answer(exchange, 204, [], 0)
        exchange.downstream.end(exchange, [])


def data(server: Server, exchange: Exchange, size: int) -> None:
    if exchange.answered and size:
        exchange.downstream.data(exchange, bytes(size))
        exchange.downstream.flush(exchange)


def end(server: Server, exchange: Exchange, size: int) -> None:
    if exchange.answered:
        exchange.downstream.end(exchange, [(b"grpc-status", b"0")] if size else [])


def refuse(server: Server, exchange: Exchange, size: int) -> None:
    exchange.refuse(REQUEST_TIMEOUT)


def pause(server: Server, exchange: Exchange, size: int) -> None:
    exchange.downstream.pause(exchange, "upstream")


def resume(server: Server, exchange: Exchange, size: int) -> None:
    exchange.downstream.resume(exchange, "upstream")


def block(server: Server, exchange: Exchange, size: int) -> None:
    server.codec.pause_writing()


def unblock(server: Server, exchange: Exchange, size: int) -> None:
    server.codec.resume_writing()


def drain(server: Server, exchange: Exchange, size: int) -> None:
    server.codec.drain()


ACTIONS = st.tuples(
    st.sampled_from([answer, empty, data, data, end, refuse, pause, resume, block, unblock, drain]), WHICH, SIZES
)


@settings(deadline=None)
@given(st.lists(st.one_of(FROM_CLIENTS, ACTIONS, ACTIONS), max_size=30), st.booleans(), st.booleans())
@example([(answer, 0, 0)], True, False)
@example([(answer, 0, 1), (data, 0, 300_000), (block, 0, 0), (end, 0, 1)], False, False)
def test_every_request_ends_once(
    steps: list[bytes | Answer | tuple[Callable[..., None], int, int]], lost: bool, settles: bool
) -> None:
    server = Server()
    server.feed(server.head(1, POST, end=False), server.head(3, GET))
    for step in steps:
        if isinstance(step, bytes):
            server.feed(step)
        elif isinstance(step, tuple):
            act, which, size = step
            going = [each for each in server.stages.exchanges if not each.finished]
            if going:
                act(server, going[which % len(going)], size)
        if settles:
            server.settle()
    if not lost:
        server.codec.resume_writing()
        server.codec.close()
    server.lose()
    counted = [exchange for exchange, _, _ in server.stages.ended]
    assert len(set(counted)) == len(counted), "an exchange is counted twice"
    assert set(server.stages.exchanges) <= set(counted)
    assert all(each.finished for each in counted)
    session = server.codec.session
    held = (session.streams, session.queued, session.head_bytes, server.pod.held.bytes, server.pod.streams)
    assert held == ({}, 0, 0, 0, 0)


@settings(deadline=None)
@given(st.lists(st.one_of(FROM_SERVERS, WHICH), max_size=30))
@example([Asking().head(1, (*OK, (b"content-length", b"0")), end=False)])
def test_every_request_to_an_endpoint_gets_one_end(steps: list[bytes | int]) -> None:
    """Or is sent once more, on another connection."""
    asking = Asking()
    asked = [asking.ask(), asking.ask(b"HEAD"), asking.ask()]
    for step in steps:
        if isinstance(step, bytes):
            asking.feed(step)
        elif step < 3 and asked[step] not in asking.keeper.retried:
            asked[step].give_up(REQUEST_TIMEOUT)
        asking.settle()
    asking.lose()
    again = asking.keeper.retried
    assert len(set(again)) == len(again)
    for exchange in asked:
        assert exchange.finished or exchange in again
    ends = asking.client.told.count("end") + asking.client.told.count("cut")
    assert ends == len([each for each in asked if each not in again])
    session = asking.codec.session
    assert (session.streams, asking.codec.streams, session.queued, asking.pod.held.bytes) == ({}, {}, 0, 0)


def test_a_stream_that_was_refused_once_does_not_cost_the_connection_its_others() -> None:
    """Whatever the endpoint says; it need not say anything anew."""
    asking = Asking()
    codec = asking.codec
    assert isinstance(codec, Http2Upstream)
    for _ in range(4):
        asking.ask()
    asking.settle()
    asking.feed(rst_stream(7, wire.REFUSED_STREAM))
    assert len(asking.keeper.retried) == 1
    assert not codec.free(), "so many it took, and no more"
    codec.sweep(asking.context.now + REFUSED_SECONDS / 2, 1.0)
    assert not codec.free()
    told = asking.keeper.told
    codec.sweep(asking.context.now + REFUSED_SECONDS + 1.0, 1.0)
    assert codec.free()
    assert asking.keeper.told == told + 1, "what waits is told"


def test_a_connection_whose_endpoint_takes_no_stream_is_not_waited_for() -> None:
    asking = Asking()
    codec = asking.codec
    assert isinstance(codec, Http2Upstream)
    asking.settle()
    assert codec.takes()
    asking.feed(wire.settings(((wire.MAX_CONCURRENT_STREAMS, 0),)))
    assert not codec.takes(), "another one is dialled"
    asking.feed(wire.settings(((wire.MAX_CONCURRENT_STREAMS, 1),)))
    assert codec.takes()
