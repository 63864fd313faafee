"""An exchange between halves that speak no version at all: what the proxy asks of a codec, and what
HTTP/1's two codecs do opposite one that is not HTTP/1.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nodeagent.config import ProxySettings
from nodeagent.errors import BAD_REQUEST, CONNECT_FAILED, DOWNSTREAM_GONE, UPSTREAM_PROTOCOL, UPSTREAM_RESET, Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.http.exchange import UNKNOWN, Downstream, Exchange, Upstream
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.http1.upstream import Http1Upstream
from nodeagent.proxy.permit import OPEN
from tests.unit import house
from tests.unit.proxy.stage import context
from tests.unit.proxy.test_flow import connection

ROOT = Path(__file__).parents[3]
HOST: Field = (b"Host", b"web")


class Client(Downstream):
    """A client's half of some version that may carry many exchanges: notes what it is told."""

    def __init__(self) -> None:
        self.connection = connection()
        self.permit = OPEN
        self.told: list[tuple[Any, ...]] = []
        self.others = False
        """There is another endpoint."""

    def elsewhere(self, exchange: Exchange) -> bool:
        return self.others

    def asks(self, method: bytes = b"GET", length: int = 0) -> Exchange:
        """Return a new exchange, routed."""
        exchange = Exchange(self, method, b"/", b"web", [HOST], 0.0)
        exchange.length = length
        exchange.route = Hop([(b"x-hop", b"1")], False)
        return exchange

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        self.told.append(("interim", exchange, status, fields))

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        exchange.status = status
        exchange.answered = True
        self.told.append(("answer", exchange, status, fields, length))

    def data(self, exchange: Exchange, piece: bytes) -> None:
        self.told.append(("data", exchange, piece))

    def flush(self, exchange: Exchange) -> None:
        self.told.append(("flush", exchange))

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        exchange.finished = True
        self.told.append(("end", exchange, list(trailers)))

    def cut(self, exchange: Exchange) -> None:
        self.told.append(("cut", exchange))

    def pause(self, exchange: Exchange, why: str) -> None:
        self.told.append(("pause", exchange, why))

    def resume(self, exchange: Exchange, why: str) -> None:
        self.told.append(("resume", exchange, why))


class Endpoint(Upstream):
    """An endpoint's half of some version: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def ask(self, exchange: Exchange) -> None:
        exchange.upstream = self
        waited = exchange.pending
        exchange.pending = None
        self.told.append(("ask", exchange, exchange.onward(), waited))

    def data(self, exchange: Exchange, piece: bytes) -> None:
        self.told.append(("data", exchange, piece))

    def end(self, exchange: Exchange) -> None:
        self.told.append(("end", exchange, list(exchange.trailers)))

    def abandon(self, exchange: Exchange) -> None:
        self.told.append(("abandon", exchange))

    def pause(self, exchange: Exchange) -> None:
        self.told.append(("pause", exchange))

    def resume(self, exchange: Exchange) -> None:
        self.told.append(("resume", exchange))


class Wire:
    """A transport that keeps what is written to it, and says how it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = ""
        self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = self.closed or "abort"

    def is_closing(self) -> bool:
        return bool(self.closed)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    def take(self) -> bytes:
        taken = self.written
        self.written = b""
        return taken


class Kept:
    """A pool that notes what comes back to it."""

    def __init__(self) -> None:
        self.released: list[Upstream] = []
        self.again: list[Exchange] = []

    def release(self, upstream: Upstream) -> None:
        self.released.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """It is in no pool."""

    def retry(self, exchange: Exchange) -> None:
        self.again.append(exchange)


def connected() -> tuple[Http1Upstream, Wire, Kept]:
    kept = Kept()
    wire = Wire()
    upstream = Http1Upstream(kept, connection(), 1000)
    upstream.attach(wire)  # type: ignore[arg-type]  # what is used of a transport
    return upstream, wire, kept


# -- the exchange --


def test_what_comes_of_a_body_before_its_endpoint_waits_and_goes_on_unframed() -> None:
    client = Client()
    endpoint = Endpoint()
    exchange = client.asks(b"POST", UNKNOWN)
    exchange.data(b"one")
    exchange.data(b"two")
    assert exchange.pending_bytes == 6
    endpoint.ask(exchange)
    exchange.data(b"three")
    exchange.trailers = [(b"sum", b"3")]
    exchange.complete()
    assert endpoint.told == [
        ("ask", exchange, [HOST], [b"onetwo"]),
        ("data", exchange, b"three"),
        ("end", exchange, [(b"sum", b"3")]),
    ]
    assert exchange.received == 11


def test_a_request_without_a_body_has_no_end_of_one() -> None:
    endpoint = Endpoint()
    exchange = Client().asks()
    endpoint.ask(exchange)
    exchange.complete()
    assert [each[0] for each in endpoint.told] == ["ask"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_body_is_held_until_enough_of_it_or_all_is_there(complete: bool) -> None:
    async def scene() -> None:
        client = Client()
        exchange = client.asks(b"POST", UNKNOWN)
        exchange.data(b"a")
        arrived = exchange.hold(3)
        assert client.told == [("resume", exchange, "body")]
        assert not arrived.done()
        if complete:
            exchange.complete()
        else:
            exchange.data(b"bc")
        assert arrived.done()
        assert exchange.let_go() == (b"a" if complete else b"abc")
        assert exchange.pending == [b"a" if complete else b"abc"]

    uvloop.run(scene())


def test_a_refusal_is_an_answer_like_any_other() -> None:
    client = Client()
    exchange = client.asks()
    exchange.refuse(BAD_REQUEST)
    exchange.refuse(UPSTREAM_RESET)
    (answer, data, end) = client.told
    assert answer[:3] == ("answer", exchange, 400)
    assert (b"content-length", b"%d" % len(data[2])) in answer[3]
    assert answer[4] == len(data[2]) > 0
    assert end == ("end", exchange, [])
    assert exchange.reason is BAD_REQUEST


def test_what_began_as_an_answer_is_cut_once() -> None:
    client = Client()
    exchange = client.asks()
    exchange.answered = True
    exchange.refuse(UPSTREAM_RESET)
    exchange.refuse(BAD_REQUEST)
    assert client.told == [("cut", exchange)]
    assert exchange.reason is UPSTREAM_RESET


def test_a_client_that_has_gone_is_worked_for_no_longer() -> None:
    endpoint = Endpoint()
    exchange = Client().asks()
    endpoint.ask(exchange)
    assert exchange.gone()
    assert not exchange.gone()
    assert endpoint.told[1:] == [("abandon", exchange)]


# -- HTTP/1 towards the endpoint, something else towards the client --


def test_a_whole_answer_is_told_in_parts_to_whom_its_bytes_mean_nothing() -> None:
    client = Client()
    upstream, wire, kept = connected()
    exchange = client.asks()
    upstream.ask(exchange)
    exchange.complete()
    assert wire.take() == b"GET / HTTP/1.1\r\nHost: web\r\nx-hop: 1\r\n\r\n"
    upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nA: b\r\n\r\nok")
    assert client.told == [
        ("answer", exchange, 200, [(b"Content-Length", b"2"), (b"A", b"b")], 2),
        ("data", exchange, b"ok"),
        ("end", exchange, []),
    ]
    assert kept.released == [upstream]


def test_chunks_of_an_answer_stay_on_their_side() -> None:
    client = Client()
    upstream, _, kept = connected()
    exchange = client.asks()
    upstream.ask(exchange)
    exchange.complete()
    upstream.data_received(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    upstream.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    upstream.data_received(b"3\r\ntwo\r\n0\r\nSum: 6\r\n\r\n")
    assert client.told == [
        ("interim", exchange, 103, [(b"Link", b"</a>")]),
        ("answer", exchange, 200, [], UNKNOWN),
        ("data", exchange, b"one"),
        ("flush", exchange),
        ("data", exchange, b"two"),
        ("end", exchange, [(b"Sum", b"6")]),
    ]
    assert kept.released == [upstream]


def test_fields_behind_an_answer_are_not_its_trailers() -> None:
    client = Client()
    upstream, wire, kept = connected()
    exchange = client.asks()
    upstream.ask(exchange)
    exchange.complete()
    upstream.data_received(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nEvil: 1\r\nContent-Length: 0\r\n\r\n"
    )
    assert client.told[-1] == ("end", exchange, [])
    assert wire.closed == "close"
    assert kept.released == []


def test_a_body_of_unknown_length_is_written_in_chunks() -> None:
    client = Client()
    upstream, wire, _ = connected()
    exchange = client.asks(b"POST", UNKNOWN)
    exchange.data(b"early")
    upstream.ask(exchange)
    assert wire.take() == (
        b"POST / HTTP/1.1\r\nHost: web\r\ntransfer-encoding: chunked\r\nx-hop: 1\r\n\r\n5\r\nearly\r\n"
    )
    exchange.data(b"late")
    exchange.trailers = [(b"sum", b"9")]
    exchange.complete()
    assert wire.take() == b"4\r\nlate\r\n0\r\nsum: 9\r\n\r\n"


def test_what_brings_the_client_nothing_is_bounded_for_each_exchange_by_itself() -> None:
    """Input: a hundred exchanges of a 100 and a 204, each in a read of its own. Verdict: all are
    answered; a hundred 100s of one exchange are not.
    """
    client = Client()
    upstream, wire, kept = connected()
    for _ in range(100):
        exchange = client.asks(b"PUT")
        upstream.ask(exchange)
        exchange.complete()
        upstream.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
        upstream.data_received(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert exchange.finished and exchange.reason is None
    assert len(kept.released) == 100
    endless = client.asks(b"PUT")
    upstream.ask(endless)
    for _ in range(100):
        if not wire.closed:
            upstream.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert endless.reason is UPSTREAM_PROTOCOL


def test_an_endpoint_hears_nothing_of_an_exchange_that_it_does_not_serve() -> None:
    client = Client()
    upstream, wire, _ = connected()
    before = client.asks()
    upstream.ask(before)
    before.complete()
    upstream.data_received(b"HTTP/1.1 204 No Content\r\n\r\n")
    exchange = client.asks()
    upstream.ask(exchange)
    upstream.pause(before)
    assert not wire.paused
    upstream.pause(exchange)
    upstream.resume(before)
    assert wire.paused
    upstream.abandon(before)
    assert not wire.closed
    upstream.abandon(exchange)
    assert wire.closed == "abort"


def test_an_endpoint_that_takes_no_more_stops_the_client_of_this_exchange() -> None:
    client = Client()
    upstream, wire, _ = connected()
    exchange = client.asks(b"POST", UNKNOWN)
    upstream.ask(exchange)
    upstream.pause_writing()
    upstream.resume_writing()
    assert client.told == [("pause", exchange, "upstream"), ("resume", exchange, "upstream")]
    upstream.pause(exchange)
    assert wire.paused
    upstream.resume(exchange)
    assert not wire.paused


def test_a_server_that_leaves_in_the_middle_of_an_answer_cuts_it() -> None:
    client = Client()
    upstream, _, _ = connected()
    exchange = client.asks()
    upstream.ask(exchange)
    exchange.complete()
    upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    upstream.connection_lost(None)
    assert [each[0] for each in client.told] == ["answer", "data", "flush", "cut"]
    assert exchange.reason is UPSTREAM_RESET


# -- HTTP/1 towards the client, something else towards the endpoint --


class Stages(Line):
    """A line that gives every request to *endpoint*, and notes what is observed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.observed: list[tuple[int, Reason | None]] = []
        self.ended: list[Connection] = []

    def new_request_id(self) -> bytes:
        return b"id"

    def request(self, exchange: Exchange) -> None:
        exchange.route = Hop([], False)
        self._endpoint.ask(exchange)

    def observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        self.observed.append((status, reason))

    def closed(self, connection: Connection) -> None:
        self.ended.append(connection)


class Scene:
    """A client's connection to the codec for HTTP/1."""

    def __init__(self) -> None:
        self.endpoint = Endpoint()
        self.line = Stages(self.endpoint)
        self.wire = Wire()
        shared = context(ProxySettings.model_validate({}), None)
        self.codec = Http1Downstream(self.line, shared, connection(), OPEN, self.wire)  # type: ignore[arg-type]

    def sent(self, data: bytes) -> Exchange:
        """Let the client send *data*; return its newest exchange."""
        self.codec.data_received(data)
        exchange = self.codec.current
        assert exchange is not None
        return exchange


def in_a_loop(play: Any) -> None:
    async def run() -> None:
        play(Scene())
        await asyncio.sleep(0)

    uvloop.run(run())


@pytest.mark.parametrize(
    ("version", "head", "body"),
    [
        (b"1.1", b"transfer-encoding: chunked\r\n", b"3\r\none\r\n3\r\ntwo\r\n0\r\nsum: 6\r\n\r\n"),
        (b"1.0", b"connection: close\r\n", b"onetwo"),
    ],
)
def test_an_answer_of_unknown_length_is_framed_as_the_client_can_read_it(
    version: bytes, head: bytes, body: bytes
) -> None:
    def play(scene: Scene) -> None:
        exchange = scene.sent(b"GET / HTTP/%b\r\nHost: web\r\nConnection: keep-alive\r\n\r\n" % version)
        scene.codec.interim(exchange, 103, [(b"link", b"</a>")])
        hint = scene.wire.take()
        assert hint == (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" if version == b"1.1" else b"")
        scene.codec.answer(exchange, 200, [(b"a", b"b")], UNKNOWN)
        scene.codec.data(exchange, b"one")
        assert scene.wire.written == b"", "what is known at once goes out at once"
        scene.codec.flush(exchange)
        scene.codec.data(exchange, b"two")
        scene.codec.end(exchange, [(b"sum", b"6")])
        assert scene.wire.take() == b"HTTP/1.1 200 OK\r\na: b\r\n%b\r\n%b" % (head, body)
        assert scene.line.observed == [(200, None)]

    in_a_loop(play)


def test_what_is_said_of_another_exchange_is_no_part_of_the_answer() -> None:
    def play(scene: Scene) -> None:
        exchange = scene.sent(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        other = Exchange(scene.codec, b"GET", b"/", b"web", [HOST], 0.0)
        scene.codec.answer(exchange, 200, [], UNKNOWN)
        scene.codec.data(other, b"other")
        scene.codec.flush(other)
        assert scene.wire.written == b""
        scene.codec.end(other, [])
        assert other.finished
        assert scene.wire.written == b""
        scene.codec.data(exchange, b"one")
        scene.codec.end(exchange, [])
        assert scene.wire.take() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"

    in_a_loop(play)


def test_a_request_in_chunks_goes_on_as_pieces() -> None:
    def play(scene: Scene) -> None:
        exchange = scene.sent(b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        scene.codec.data_received(b"3\r\ntwo\r\n0\r\nSum: 6\r\n\r\n")
        (asked, *rest) = scene.endpoint.told
        assert asked[2] == [HOST, (b"x-request-id", b"id"), (b"x-forwarded-proto", b"http")]
        assert exchange.header("transfer-encoding") == "chunked", "policies may ask for it"
        assert rest == [
            ("data", exchange, b"one"),
            ("data", exchange, b"two"),
            ("end", exchange, [(b"Sum", b"6")]),
        ]

    in_a_loop(play)


def test_a_client_that_does_not_read_stops_the_answer_of_its_exchange() -> None:
    def play(scene: Scene) -> None:
        exchange = scene.sent(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        scene.codec.pause_writing()
        scene.codec.resume_writing()
        assert scene.endpoint.told[1:] == [("pause", exchange), ("resume", exchange)]
        scene.codec.connection_lost(None)
        assert scene.endpoint.told[3:] == [("abandon", exchange)]
        assert scene.line.observed == [(DOWNSTREAM_GONE.status, DOWNSTREAM_GONE)]
        assert len(scene.line.ended) == 1

    in_a_loop(play)


def test_what_stands_between_the_codecs_knows_no_version() -> None:
    found = house.imports(house.modules(ROOT / "nodeagent"))
    known = {each.importer for each in found if each.imported.startswith("nodeagent.proxy.http1")}
    outside = {name for name in known if not name.startswith(("nodeagent.proxy.http1", "nodeagent.proxy.http2"))}
    makers = {"nodeagent.proxy.pipeline", "nodeagent.proxy.pool", "nodeagent.proxy.external.http_call"}
    assert outside == makers, "who makes codecs"


class Declining(Client):
    """A client's half of which the peer may be told to ask elsewhere."""

    def declines(self, exchange: Exchange, reason: Reason) -> bool:
        self.told.append(("declines", exchange, reason))
        return True


def test_an_exchange_whose_endpoint_cannot_be_reached_goes_elsewhere_is_declined_or_refused() -> None:
    for client, others, expected in (
        (Client(), True, []),
        (Declining(), True, []),
        (Declining(), False, ["declines"]),
        (Client(), False, ["answer", "data", "end"]),
    ):
        client.others = others
        exchange = client.asks()
        exchange.unreached(CONNECT_FAILED)
        assert [event[0] for event in client.told] == expected


def test_of_a_client_that_has_gone_nothing_goes_elsewhere() -> None:
    client = Client()
    client.others = True
    exchange = client.asks()
    exchange.finished = True
    exchange.unreached(CONNECT_FAILED)
    assert client.told == []
