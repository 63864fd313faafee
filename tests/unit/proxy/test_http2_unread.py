"""What waits for peers of HTTP/2 that read nothing: that it is bounded, and where it is counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame
from nodeagent.proxy.http2.upstream import HEADS_A_TURN, KEPT, KEPT_PART, UNSENT, Http2Upstream
from tests.unit.proxy.http2_wire import OK, Asking, enrolled

LARGE = (b"x-large", b"#" * 50_000)
HELD = 16 << 20


def upstream(asking: Asking) -> Http2Upstream:
    assert isinstance(asking.codec, Http2Upstream)
    return asking.codec


def fill(asking: Asking) -> None:
    """Ask as long as an endpoint that takes nothing may be asked."""
    for _ in itertools.takewhile(lambda _: upstream(asking).free(), range(20)):
        asking.ask(b"POST", LARGE)
        asking.turns.run()


def test_an_endpoint_that_reads_nothing_is_asked_for_no_more() -> None:
    """Input: requests that their client gives up as soon as they are sent, so that no stream is open."""
    asking = Asking()
    codec = upstream(asking)
    asking.deafen()
    for _ in itertools.takewhile(lambda _: codec.free(), range(1000)):
        asking.ask(b"GET", LARGE).gone()
        asking.turns.run()
    assert not codec.free()
    assert UNSENT < len(asking.pipe.written) < 2 * UNSENT
    assert asking.pod.held.bytes == len(asking.pipe.written)
    told = asking.keeper.told
    asking.listen()
    assert codec.free()
    assert asking.keeper.told == told + 1, "what waits meanwhile goes on"
    assert asking.pod.held.bytes == 0


def test_heads_of_one_turn_wait_until_it_is_seen_whether_they_are_taken() -> None:
    asking = Asking()
    codec = upstream(asking)
    while codec.free():
        asking.ask(b"GET", LARGE)
        assert len(codec.streams) < 1000
    told = asking.keeper.told
    asking.settle()
    assert HEADS_A_TURN < sum(exchange.received for exchange in codec.streams) < 2 * HEADS_A_TURN
    assert asking.keeper.told == told + 1
    assert codec.free()


def test_an_endpoint_that_reads_nothing_is_not_read() -> None:
    """Input: a byte of an answer behind each PING, so that none of them uses up its patience."""
    asking = Asking()
    asking.ask()
    asking.settle()
    asking.deafen()
    asking.feed_only(asking.head(1, OK, end=False))
    piece = (frame(wire.PING, 0, 0, bytes(8)) + frame(wire.DATA, 0, 1, b"x")) * 100
    for count in itertools.takewhile(lambda _: asking.pipe.reading, itertools.count()):
        assert count < 1000, "answers to its PINGs grow without a bound"
        asking.feed_only(piece)
    assert len(asking.pipe.written) < 2 * UNSENT
    asking.listen()
    assert asking.pipe.reading


def test_an_endpoint_whose_transport_keeps_too_much_is_cut() -> None:
    pod = enrolled()
    askings = [Asking(pod, heldBytesPerPod=HELD) for _ in range(100)]
    for asking in askings:
        asking.deafen()
        fill(asking)
    for asking in askings:
        asking.turns.run()
    cut = [asking for asking in askings if asking.pipe.closed]
    assert 20 < len(cut) < 80
    for asking in cut:
        asking.lose()
        assert {each.split()[0] for each in asking.client.told} == {"answer", "data", "end"}
    assert pod.held.bytes <= HELD
    for asking in askings:
        asking.lose()
    assert pod.held.bytes == 0


@pytest.mark.parametrize("deaf", [False, True])
def test_what_waits_for_an_endpoint_that_breaks_a_rule_is_nobodys(deaf: bool) -> None:
    """Verdict: it is told which, unless it takes nothing: then nothing is kept for it."""
    asking = Asking()
    ended: list[str] = []
    asking.pipe.close = lambda: ended.append("close")  # type: ignore[method-assign]
    asking.pipe.abort = lambda: ended.append("abort")  # type: ignore[method-assign]
    asking.ask()
    if deaf:
        asking.deafen()
    asking.settle()
    asking.feed(frame(wire.PING, 0, 1, bytes(8)))
    assert ended == ["abort" if deaf else "close"]


BODY = bytes(KEPT)


def test_what_is_kept_to_be_sent_once_more_is_bounded_for_a_pod() -> None:
    """Input: an endpoint that takes all and answers nothing. Verdict: what is not kept is sent once."""
    pod = enrolled()
    askings = [Asking(pod, heldBytesPerPod=HELD) for _ in range(2)]
    for asking in askings:
        asking.feed(wire.settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),)), wire.window_update(0, 1 << 30))
        for _ in range(30):
            asking.ask(b"POST", body=BODY)
            asking.settle()
        assert asking.codec.session.queued == 0
    assert pod.held.kept == HELD // KEPT_PART == 32 * KEPT
    for asking in askings:
        asking.feed(wire.goaway(0, 0, b""))
    assert [len(asking.keeper.retried) for asking in askings] == [30, 2]
    assert [asking.client.told.count("answer 503") for asking in askings] == [0, 28]
    assert pod.held.kept == 0


ENDS: dict[str, Callable[[Asking, Exchange], object]] = {
    "an answer": lambda asking, exchange: asking.feed(asking.head(1, OK, end=False)),
    "an answer that is none": lambda asking, exchange: asking.feed(asking.head(1, ())),
    "a reset": lambda asking, exchange: asking.feed(wire.rst_stream(1, wire.CANCEL)),
    "a refusal": lambda asking, exchange: asking.feed(wire.rst_stream(1, wire.REFUSED_STREAM)),
    "its client's end": lambda asking, exchange: exchange.gone(),
    "the connection's end": lambda asking, exchange: asking.lose(),
    "another one's fault": lambda asking, exchange: asking.feed(frame(wire.PING, 0, 1, bytes(8))),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_kept_is_let_go(end: str) -> None:
    asking = Asking()
    exchange = asking.ask(b"POST", body=BODY)
    asking.settle()
    assert asking.pod.held.kept == KEPT
    ENDS[end](asking, exchange)
    asking.settle()
    assert asking.pod.held.kept == 0
