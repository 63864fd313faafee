"""TlsStream over real sockets: against itself, and against OpenSSL driven by hand."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nodeagent.identity.tls import Contexts
from nodeagent.proxy.tls.stream import EMPTY_RECORDS, RECORDS_A_TURN, TlsStream
from tests.unit.proxy import tls_client
from tests.unit.proxy.nodes import SERVER, Nodes, play
from tests.waiting import DEADLINE, packet, until


class Above(asyncio.Protocol):
    """Notes what a stream says to the protocol above it."""

    def __init__(self) -> None:
        self.data, self.ended, self.lost = b"", False, asyncio.Event()
        self.error: Exception | None = None
        self.on_data: Callable[[], None] = lambda: None

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.on_data()

    def eof_received(self) -> bool:
        assert not self.ended, "an end comes once"
        self.ended = True
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self.lost.set()


class End:
    """One end of a connection."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.above = Above()
        self.ready: asyncio.Future[TlsStream] = asyncio.get_running_loop().create_future()
        self.stream = TlsStream(context, server_side=server_side, ready=self._ready, failed=self._failed)

    def _ready(self, stream: TlsStream) -> None:
        stream.protocol = self.above
        self.ready.set_result(stream)

    def _failed(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)


def on_a_pair(tls: dict[str, Contexts], scene: Callable[[End, End], Awaitable[None]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        faults: list[Any] = []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        one, other = socket.socketpair()
        client, server = End(tls["client"].client_tcp, server_side=False), End(tls["server"].server, server_side=True)
        await loop.create_connection(lambda: server.stream, sock=other)  # type: ignore[type-var]
        await loop.create_connection(lambda: client.stream, sock=one)  # type: ignore[type-var]
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(client.ready, server.ready)
            await scene(client, server)
        for end in (client, server):
            end.stream.abort()
        await packet()
        assert not faults

    uvloop.run(run())


def test_each_direction_ends_by_itself(tls: dict[str, Contexts]) -> None:
    async def scene(client: End, server: End) -> None:
        client.stream.write(b"question")
        client.stream.write_eof()
        await until(lambda: server.above.ended)
        assert server.above.data == b"question"
        server.stream.write(b"answer" * 50_000)
        server.stream.write_eof()
        await until(lambda: client.above.ended)
        assert client.above.data == b"answer" * 50_000
        assert not client.above.lost.is_set()

    on_a_pair(tls, scene)


@pytest.mark.parametrize("with_end", [False, True])
def test_what_was_not_read_yet_survives_the_end_of_the_other_direction(
    tls: dict[str, Contexts], with_end: bool
) -> None:
    """SSL_shutdown reads on by itself: it must not find what the protocol above has yet to take."""

    async def scene(client: End, server: End) -> None:
        server.above.on_data = server.stream.pause_reading
        client.stream.write(b"a" * 300_000)
        if with_end:
            client.stream.write_eof()
        await until(lambda: bool(server.above.data))
        server.stream.write_eof()
        await until(lambda: client.above.ended)
        server.above.on_data = lambda: None
        server.stream.resume_reading()
        await until(lambda: len(server.above.data) == 300_000)
        if not with_end:
            client.stream.write(b"more")
            await until(lambda: server.above.data.endswith(b"more"))
            client.stream.write_eof()
        await until(lambda: server.above.ended)
        assert not server.above.lost.is_set()

    on_a_pair(tls, scene)


def test_ending_from_within_a_callback_loses_nothing(tls: dict[str, Contexts]) -> None:
    async def scene(client: End, server: End) -> None:
        server.above.on_data = server.stream.write_eof
        client.stream.write(b"a" * 200_000)
        client.stream.write_eof()
        await until(lambda: server.above.ended)
        assert server.above.data == b"a" * 200_000

    on_a_pair(tls, scene)


def test_close_sends_what_was_written_and_a_close_notify(tls: dict[str, Contexts]) -> None:
    async def scene(client: End, server: End) -> None:
        client.stream.write(b"z" * 500_000)
        client.stream.close()
        client.stream.close()
        client.stream.write(b"too late")
        await until(lambda: server.above.ended)
        assert server.above.data == b"z" * 500_000

    on_a_pair(tls, scene)


def test_a_stream_cut_off_is_lost_with_an_error(tls: dict[str, Contexts]) -> None:
    async def scene(client: End, server: End) -> None:
        client.stream.write(b"half of it")
        client.stream.transport.write_eof()
        await server.above.lost.wait()
        assert server.above.data == b"half of it"
        assert not server.above.ended
        assert isinstance(server.above.error, ConnectionResetError)

    on_a_pair(tls, scene)


def test_bytes_that_are_not_tls_end_it_with_an_error(tls: dict[str, Contexts]) -> None:
    async def scene(client: End, server: End) -> None:
        client.stream.transport.write(b"GET / HTTP/1.1\r\n\r\n")
        await server.above.lost.wait()
        assert isinstance(server.above.error, ssl.SSLError)

    on_a_pair(tls, scene)


class ByHand:
    """A TLS client over a blocking-style socket, which can leave out what a decent one does."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._in, self._out)

    async def start(self, nodes: Nodes) -> None:
        self.reader, self.writer = await nodes.dial("127.0.0.3")
        while True:
            try:
                self.session.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(await self.reader.read(65536))
        self._flush()

    def send(self, data: bytes) -> None:
        self.session.write(data)
        self._flush()

    def _flush(self) -> None:
        self.writer.write(self._out.read())


def test_a_truncated_upload_is_not_an_end_for_the_application(tls: dict[str, Contexts]) -> None:
    """FIN without close_notify (RFC 8446 section 6.1): whoever cuts the wire must not be able to shorten a message."""
    outcome: list[object] = []
    done = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            outcome.append(await reader.read())
        except ConnectionResetError:
            outcome.append("reset")
        done.set()

    async def scene(nodes: Nodes) -> None:
        peer = ByHand(tls["client"].client_tcp)
        await peer.start(nodes)
        peer.send(b"transfer 100")
        await packet()
        peer.writer.write_eof()
        await done.wait()
        assert outcome == ["reset"]

    play(app, scene, tls, protocol="tcp")


def test_a_truncated_answer_is_not_passed_off_as_whole(tls: dict[str, Contexts]) -> None:
    """An answer that ends with the connection, over a TLS stream that was cut off."""

    async def scene(nodes: Nodes) -> None:
        loop = asyncio.get_running_loop()
        ends: list[End] = []

        def accept() -> Any:
            end = End(tls["server"].server, server_side=True)
            ends.append(end)
            return end.stream

        peer = await loop.create_server(accept, SERVER, 0)
        nodes.originals.to = (SERVER, peer.sockets[0].getsockname()[1])
        reader, writer = await nodes.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        await until(lambda: bool(ends) and b"\r\n\r\n" in ends[0].above.data)
        ends[0].stream.write(b"HTTP/1.1 200 OK\r\n\r\nhalf an ans")
        ends[0].stream.transport.write_eof()
        with pytest.raises(ConnectionResetError):
            raise AssertionError(await reader.read())
        peer.close()

    play(lambda reader, writer: asyncio.sleep(0), scene, tls, protocol="http")


def by_hand(
    tls: dict[str, Contexts], path: Path, scene: Callable[[tls_client.Writer, socket.socket, End], Awaitable[None]]
) -> None:
    """Play *scene* with a client that writes its own records."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        server = End(tls["server"].server, server_side=True)
        await loop.create_connection(lambda: server.stream, sock=other)  # type: ignore[type-var]
        with one:
            async with asyncio.timeout(DEADLINE):
                writer = await loop.run_in_executor(
                    None, tls_client.handshake, tls["client"].client_tcp, one, path / "keys"
                )
                await server.ready
                await scene(writer, one, server)
        server.stream.abort()
        await packet()

    uvloop.run(run())


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("between", [b"", b"x"])
def test_key_updates_without_end_end_the_connection(
    tls: dict[str, Contexts], tmp_path: Path, back: bool, between: bytes
) -> None:
    """OpenSSL takes them for ever, and each costs new keys; a byte of data now and then makes them no better."""

    async def scene(writer: tls_client.Writer, client: socket.socket, server: End) -> None:
        flood = []
        for _ in range(100):
            flood += [writer.key_update(back=back) for _ in range(10)]
            flood += [writer.data(between)] if between else []
        sending = asyncio.get_running_loop().run_in_executor(None, _send, client, b"".join(flood))
        await server.above.lost.wait()
        await sending
        assert isinstance(server.above.error, ConnectionAbortedError)
        assert server.stream._came <= EMPTY_RECORDS + len(server.above.data) + RECORDS_A_TURN

    by_hand(tls, tmp_path, scene)


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        pass  # it was cut


def test_as_many_key_updates_as_the_data_justifies_are_taken(tls: dict[str, Contexts], tmp_path: Path) -> None:
    async def scene(writer: tls_client.Writer, client: socket.socket, server: End) -> None:
        for number in range(20):
            client.sendall(writer.key_update(back=True) + writer.data(b"%d," % number))
        await until(lambda: server.above.data.endswith(b"19,"))
        assert not server.above.lost.is_set()

    by_hand(tls, tmp_path, scene)


@pytest.mark.parametrize("paused", [False, True])
def test_small_records_that_come_at_once_take_several_turns(
    tls: dict[str, Contexts], tmp_path: Path, paused: bool
) -> None:
    """Others have their turns in between, and nothing is lost or out of order, however the protocol above reads."""

    async def scene(writer: tls_client.Writer, client: socket.socket, server: End) -> None:
        loop = asyncio.get_running_loop()
        turn = [0]
        turns: list[int] = []

        def tick() -> None:
            turn[0] += 1
            loop.call_soon(tick)

        def pause_now_and_then() -> None:
            turns.append(turn[0])
            if paused and len(turns) % 50 == 0:
                server.stream.pause_reading()
                loop.call_later(0.001, server.stream.resume_reading)

        server.above.on_data = pause_now_and_then
        tick()
        texts = [b"%d," % number for number in range(5000)]
        sending = loop.run_in_executor(None, _send, client, b"".join(writer.data(text) for text in texts))
        await until(lambda: len(turns) == len(texts))
        await sending
        assert server.above.data == b"".join(texts)
        assert max(turns.count(one) for one in set(turns)) <= 2 * RECORDS_A_TURN

    by_hand(tls, tmp_path, scene)
