"""How much a peer may send at once: more where its bytes are taken as they come, bounded where not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.sender import CONNECTION_WINDOW, WIDENED, WIDENED_PART
from nodeagent.proxy.http2.session import STREAM_WINDOW
from nodeagent.proxy.http2.upstream import Http2Upstream
from nodeagent.proxy.pods import PodState
from tests.unit.proxy.http2_wire import GET, OK, POST, Asking, Frame, Server, enrolled, read_frame
from tests.unit.proxy.stage import Stage, play
from tests.waiting import steady

PIECE = bytes(wire.DEFAULT_FRAME)
HELD = 64 << 20


class Download:
    """An endpoint's answer without an end, that keeps to the windows."""

    def __init__(self, pod: PodState) -> None:
        self.asking = Asking(pod, heldBytesPerPod=HELD)
        self.exchange = self.asking.ask()
        self.asking.settle()
        self.connection = CONNECTION_WINDOW
        self.stream = STREAM_WINDOW
        self.asking.feed(self.asking.head(1, OK, end=False))

    def burst(self) -> int:
        """Send as much as the windows allow; then take the new ones. Return how much that was."""
        sent = written = 0
        while min(self.stream, self.connection) - sent >= len(PIECE):
            for each in self.asking.feed(frame(wire.DATA, 0, 1, PIECE)):
                assert each.kind == wire.WINDOW_UPDATE
                more = int.from_bytes(each.payload, "big")
                self.connection += 0 if each.number else more
                written += more if each.number else 0
            sent += len(PIECE)
        self.connection -= sent
        self.stream += written - sent
        return sent


def test_a_stream_that_is_taken_as_it_comes_may_send_more_and_more_at_once() -> None:
    pod = enrolled()
    download = Download(pod)
    bursts = [download.burst() for _ in range(12)]
    assert bursts[0] == STREAM_WINDOW
    assert bursts[-1] == bursts[-2] > 8 * STREAM_WINDOW, "as long as there is room"
    assert bursts[-1] <= STREAM_WINDOW + WIDENED
    download.asking.lose()
    assert (pod.held.bytes, pod.held.widened) == (0, 0)


def test_a_stream_that_is_held_gets_nothing_more() -> None:
    download = Download(enrolled())
    codec = download.asking.codec
    assert isinstance(codec, Http2Upstream)
    codec.pause(download.exchange)
    assert [download.burst(), download.burst()] == [STREAM_WINDOW, 0]
    codec.resume(download.exchange)
    (update,) = [each for each in download.asking.settle() if each.number]
    assert int.from_bytes(update.payload, "big") == STREAM_WINDOW


def test_what_a_pods_streams_may_send_at_once_is_bounded() -> None:
    pod = enrolled()
    downloads = [Download(pod) for _ in range(8)]
    bursts = [0] * len(downloads)
    for _ in range(12):
        bursts = [each.burst() for each in downloads]
    assert pod.held.widened == HELD // WIDENED_PART
    assert sum(bursts) <= len(downloads) * STREAM_WINDOW + HELD // WIDENED_PART
    for each in downloads:
        each.asking.lose()
    assert pod.held.widened == 0


class Uploads:
    """A client's requests with bodies, on one connection, which keeps to the windows."""

    def __init__(self, pod: PodState, count: int) -> None:
        self.server = Server(pod)
        self.connection = wire.DEFAULT_WINDOW
        self.windows: dict[int, int] = {}
        self.take(self.server.hello)
        for number in range(1, 2 * count, 2):
            self.windows[number] = STREAM_WINDOW
            self.take(self.server.feed(self.server.head(number, POST, end=False)))

    def take(self, written: Sequence[Frame]) -> None:
        for each in written:
            assert each.kind not in (wire.RST_STREAM, wire.GOAWAY)
            if each.kind == wire.WINDOW_UPDATE:
                more = int.from_bytes(each.payload, "big")
                if each.number:
                    self.windows[each.number] += more
                else:
                    self.connection += more

    def push(self, number: int) -> int:
        """Send as much of one body as the windows allow; return how much that was."""
        sent = 0
        while min(self.windows[number], self.connection) >= len(PIECE):
            self.windows[number] -= len(PIECE)
            self.connection -= len(PIECE)
            sent += len(PIECE)
            self.take(self.server.feed(frame(wire.DATA, 0, number, PIECE)))
        return sent


STANDING = 100
"""Streams: the windows of a third would be the connection's."""


def test_uploads_that_stand_still_do_not_take_the_window_of_one_that_moves() -> None:
    pod = enrolled()
    uploads = Uploads(pod, STANDING + 1)
    *standing, moving = uploads.server.stages.exchanges
    for exchange in standing:
        exchange.downstream.pause(exchange, "upstream")
    numbers = list(uploads.windows)
    assert {uploads.push(number) for number in numbers[:-1]} == {STREAM_WINDOW}
    session = uploads.server.codec.session
    assert pod.held.bytes - session.head_bytes == session.owed == STANDING * STREAM_WINDOW
    assert uploads.connection > STREAM_WINDOW
    for _ in range(4):
        assert uploads.push(numbers[-1]) == STREAM_WINDOW
        moving.pending = None
        moving.pending_bytes = 0
        moving.downstream.resume(moving, "body")
        uploads.take(uploads.server.settle())
    uploads.server.lose()
    assert pod.held.bytes == session.owed == 0


def test_downloads_that_stand_still_do_not_take_the_window_of_one_that_moves() -> None:
    pod = enrolled()
    asking = Asking(pod)
    codec = asking.codec
    assert isinstance(codec, Http2Upstream)
    connection = wire.DEFAULT_WINDOW + updates(asking.hello)
    for _ in range(STANDING):
        codec.pause(asking.ask())
    asking.ask()
    connection += updates(asking.settle())
    for number in range(1, 2 * STANDING, 2):
        asking.feed(asking.head(number, OK, end=False))
        for _ in range(STREAM_WINDOW // len(PIECE)):
            connection += updates(asking.feed(frame(wire.DATA, 0, number, PIECE))) - len(PIECE)
            assert connection >= 0
    assert codec.session.owed == STANDING * STREAM_WINDOW
    assert connection > STREAM_WINDOW
    asking.lose()
    assert pod.held.bytes == 0


def updates(written: Sequence[Frame]) -> int:
    """Return by how much the window of the connection grew."""
    found = [each for each in written if each.kind == wire.WINDOW_UPDATE and not each.number]
    return sum(int.from_bytes(each.payload, "big") for each in found)


def test_one_slow_reader_of_an_answer_of_a_gigabyte_is_bounded() -> None:
    """It reads fast for a while, so that its window has grown, and then not at all."""
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        stream = 0
        connection = wire.DEFAULT_WINDOW
        await reader.readexactly(len(wire.PREFACE))
        writer.write(wire.settings(()))
        while sent < 1 << 30:
            each = await read_frame(reader)
            if each.kind == wire.HEADERS:
                stream = STREAM_WINDOW
                writer.write(frame(wire.HEADERS, wire.END_HEADERS, each.number, b"\x88"))
            elif each.kind == wire.WINDOW_UPDATE:
                more = int.from_bytes(each.payload, "big")
                stream += more if each.number else 0
                connection += 0 if each.number else more
            while min(stream, connection) - sent >= len(PIECE):
                writer.write(frame(wire.DATA, 0, 1, PIECE))
                sent += len(PIECE)

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(
            wire.PREFACE
            + wire.settings(((wire.INITIAL_WINDOW_SIZE, wire.LARGEST_WINDOW),))
            + wire.window_update(0, wire.LARGEST_WINDOW - wire.DEFAULT_WINDOW)
            + frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, Encoder().encode(GET))
        )
        taken = 0
        while taken < 32 << 20:
            taken += len(await reader.readexactly(1 << 20))
        held = await steady(lambda: sent) - taken
        assert stage.pods["client"].held.widened <= WIDENED
        assert 0 < stage.pods["client"].held.bytes <= STREAM_WINDOW + WIDENED + (1 << 18)
        assert held < 64 << 20, "what two pairs of sockets hold is among it"
        writer.close()

    play(app, scene, protocol="http2")
