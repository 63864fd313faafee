"""POSTs: in which pieces they leave."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvloop

from nodeagent.logs.sinks.http_client import PIECE, HttpAnswer, HttpClient
from nodeagent.logs.sinks.secrets import Authorization, ClientTls
from nodeagent.logs.sinks.settings import SinkAuth, SinkTls

BODY = bytes(range(256)) * (PIECE // 64) + b"the end"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def posted(body: bytes) -> tuple[HttpAnswer, bytes]:
    """Return what a server answers to *body*, and what it got of it."""
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.extend(await reader.readexactly(len(body)))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpClient([f"http://127.0.0.1:{port}"], ClientTls(SinkTls()), Authorization(SinkAuth()), timeout=60.0)
        answer = await client.post("/_bulk", {}, body)
        await client.close()
    return answer, bytes(got)


def test_a_long_body_leaves_in_pieces_that_are_written_one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written within one turn of uvloop goes to the kernel in one call, which nobody interrupts there."""
    turn = 0
    pieces: list[tuple[int, int]] = []
    write = asyncio.StreamWriter.write

    def noted(writer: asyncio.StreamWriter, data: bytes | bytearray | memoryview) -> None:
        pieces.append((turn, len(data)))
        write(writer, data)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def scene() -> tuple[HttpAnswer, bytes]:
        counting = asyncio.ensure_future(count())
        try:
            return await posted(BODY)
        finally:
            counting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await counting

    monkeypatch.setattr(asyncio.StreamWriter, "write", noted)
    answer, got = uvloop.run(scene())
    assert (answer.status, got) == (200, BODY)
    _, *body, answered = pieces  # behind the head, before the server's
    assert answered[1] == len(ANSWER)
    assert [size for _, size in body] == [PIECE] * 4 + [len(b"the end")]
    turns = [when for when, _ in body]
    assert turns == sorted(set(turns)), "two pieces in one turn are one to the kernel"


def test_a_body_that_is_empty_is_none() -> None:
    assert asyncio.run(posted(b"")) == (HttpAnswer(200, b"", None), b"")
