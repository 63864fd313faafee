"""HTTP/2 codecs without a network: a client's or an endpoint's half whose peer is bytes made by hand."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodeagent.config import ProxySettings
from nodeagent.errors import Reason
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.context import Context
from nodeagent.proxy.http.exchange import Downstream, Exchange
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.downstream import Http2Downstream
from nodeagent.proxy.http2.frames import frame, settings
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.upstream import Http2Upstream, StreamKeeper
from nodeagent.proxy.permit import OPEN
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.transport import Transport
from nodeagent.proxy.view import Resolved
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.vocabulary import Address, PodUid

Pairs = Sequence[tuple[bytes, bytes]]
GET: Pairs = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"web"))
POST: Pairs = ((b":method", b"POST"), *GET[1:])
OK: Pairs = ((b":status", b"200"),)
INTERIM: Pairs = ((b":status", b"103"),)
SETTLED = settings(())


@dataclass(frozen=True)
class Frame:
    """One that a codec wrote."""

    kind: int
    flags: int
    number: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == wire.RST_STREAM else self.payload[4:8], "big")


def frames(data: bytes) -> list[Frame]:
    """Return the frames in *data*, all of them whole."""
    found: list[Frame] = []
    at = 0
    while at < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        number = int.from_bytes(data[at + 5 : at + 9], "big")
        assert end <= len(data), "half a frame"
        found.append(Frame(data[at + 3], data[at + 4], number, data[at + 9 : end]))
        at = end
    return found


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Return the next frame. Raises IncompleteReadError at the end."""
    head = await reader.readexactly(wire.FRAME_HEAD)
    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    return Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)


class Turns:
    """A loop whose turns are taken by hand."""

    def __init__(self) -> None:
        self._soon: collections.deque[Callable[[], object]] = collections.deque()

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        self._soon.append(lambda: call(*arguments))

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Nothing here lasts so long."""

    def run(self) -> int:
        """Take turns until nobody wants one; return how many calls that took."""
        count = 0
        while self._soon:
            self._soon.popleft()()
            count += 1
            assert count < 10_000, "the loop never rests"
        return count


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.ended = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return None


class DeafPipe(Pipe):
    """One whose peer takes nothing: of whatever is written it says that it keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.full: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.full is not None:
            self.full()


class Stages(Line):
    """The stages between the halves, which leave an exchange to the test."""

    def __init__(self) -> None:
        self.at_once = False
        """Each request is answered before anything else happens, as one that policy refuses."""
        self.exchanges: list[Exchange] = []
        self.ended: list[tuple[Exchange, int, Reason | None]] = []
        self.broken: list[tuple[Reason, str]] = []

    def new_request_id(self) -> bytes:
        return b"id"

    def request(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.at_once:
            exchange.downstream.answer(exchange, 204, [], 0)
            exchange.downstream.end(exchange, [])

    def observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        self.ended.append((exchange, status, reason))

    def tunnel(self, exchange: Exchange, client: Transport, endpoint: Transport, early: bytes, rest: bytes) -> None:
        raise AssertionError("nothing here leaves HTTP")

    def broke(self, connection: Connection, reason: Reason, words: str) -> None:
        self.broken.append((reason, words))

    def closed(self, connection: Connection) -> None:
        pass


def context(turns: Turns, limits: dict[str, int]) -> Context:
    return Context(
        loop=turns,  # type: ignore[arg-type]
        settings=ProxySettings.model_validate({"limits": limits, "sharedConnections": True}),
        mesh=MeshSettings("cluster.local"),
        cluster_id="Kubernetes",
        metrics=WorkerMetrics(),
        access_log=None,
        now=0.0,
    )


def enrolled() -> PodState:
    return PodState(PodUid("client"), 1, "spiffe://cluster.local/ns/default/sa/client", lambda family, count: None)


def accepted(pod: PodState) -> Connection:
    """Return the record of a connection of *pod*'s."""
    peer = Peer("10.244.1.2", 40000, "", "kernel_attested", None)
    return Connection(pod, "outbound", peer, Resolved(Address("10.96.0.1"), 80, "http2", None, ()), 0.0)


class _Codec:
    """What both halves have in common here."""

    codec: Http2Downstream | Http2Upstream

    def __init__(self, pod: PodState | None, limits: dict[str, int]) -> None:
        self.pod = pod or enrolled()
        self.turns = Turns()
        self.pipe = DeafPipe()
        self.context = context(self.turns, limits)
        self.encoder = Encoder()

    def feed(self, *pieces: bytes) -> list[Frame]:
        """Let the codec read *pieces* at once; return the frames that it writes then."""
        self.feed_only(*pieces)
        return self.settle()

    def feed_only(self, *pieces: bytes) -> None:
        """Let the codec read *pieces* at once; what it writes then stays with the transport."""
        if not self.pipe.closed:
            self.codec.data_received(b"".join(pieces))
        self.turns.run()

    def settle(self) -> list[Frame]:
        """Let what is due happen; return the frames that the codec has written."""
        self.turns.run()
        written = self.pipe.written.removeprefix(wire.PREFACE)
        self.pipe.written = b""
        return frames(written)

    def deafen(self) -> None:
        """The peer takes nothing from now on."""
        self.pipe.full = self.codec.pause_writing

    def listen(self) -> list[Frame]:
        """The peer takes all that was kept for it; return the frames that the codec writes then."""
        self.pipe.full = None
        self.codec.resume_writing()
        return self.settle()

    def lose(self) -> None:
        """The connection is lost."""
        self.pipe.closed = True
        self.codec.connection_lost(None)
        self.turns.run()

    def head(self, number: int, fields: Pairs, *, end: bool = True) -> bytes:
        """Return the HEADERS of *number* as one frame."""
        flags = wire.END_HEADERS | (wire.END_STREAM if end else 0)
        return frame(wire.HEADERS, flags, number, self.encoder.encode(fields))


class Server(_Codec):
    """The half towards a client, whose requests the test makes and answers."""

    def __init__(self, pod: PodState | None = None, *, hello: bytes = wire.PREFACE + SETTLED, **limits: int) -> None:
        super().__init__(pod, limits)
        self.stages = Stages()
        self.codec = Http2Downstream(self.stages, self.context, accepted(self.pod), OPEN, self.pipe)
        self.hello = self.feed(hello)


class _Client(Downstream):
    """The half towards a client, of whatever version, that takes what it is told."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.told: list[str] = []

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        self.told.append(f"interim {status}")

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        exchange.answered = True
        self.told.append(f"answer {status}")

    def data(self, exchange: Exchange, piece: bytes) -> None:
        self.told.append(f"data {len(piece)}")

    def flush(self, exchange: Exchange) -> None:
        pass

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        exchange.finished = True
        self.told.append("end")

    def cut(self, exchange: Exchange) -> None:
        self.told.append("cut")

    def pause(self, exchange: Exchange, why: str) -> None:
        pass

    def resume(self, exchange: Exchange, why: str) -> None:
        pass


@dataclass
class _Keeper(StreamKeeper):
    retried: list[Exchange] = field(default_factory=list)
    told: int = 0
    """How often a connection had room again."""

    def freed(self, upstream: Http2Upstream) -> None:
        self.told += 1

    def forget(self, upstream: Http2Upstream) -> None:
        pass

    def retry(self, exchange: Exchange) -> None:
        self.retried.append(exchange)


class Asking(_Codec):
    """The half towards an endpoint, whose answers the test makes."""

    def __init__(self, pod: PodState | None = None, **limits: int) -> None:
        super().__init__(pod, limits)
        self.keeper = _Keeper()
        connection = accepted(self.pod)
        self.client = _Client(connection)
        self.codec = Http2Upstream(self.keeper, connection, self.context, self.pipe, 1000)
        self.codec.begin()
        self.hello = self.feed(SETTLED)

    def ask(self, method: bytes = b"GET", *more: Field, body: bytes = b"") -> Exchange:
        """Open a stream for a request with *more* fields and *body*, all of it there."""
        exchange = Exchange(self.client, method, b"/", b"web", [(b"host", b"web"), *more], 0.0)
        exchange.route = Hop([], False)
        exchange.request_complete = True
        if body:
            exchange.length = len(body)
            exchange.pending = [body]
        self.codec.ask(exchange)
        return exchange
