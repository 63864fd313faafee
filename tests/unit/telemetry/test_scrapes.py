"""Who asks the daemon's open ports often: one rendering serves all, each address waits for itself,
and others keep their connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import pytest

from nodeagent.telemetry import scrapes as module
from nodeagent.telemetry.formats import OPENMETRICS, TEXT, Format
from nodeagent.telemetry.http_server import EVERYWHERE, Response, ServerLimits, serve
from nodeagent.telemetry.scrapes import FRESH_SECONDS, Scrapes
from nodeagent.telemetry.sources import LONGEST_SECONDS, SOURCES, Sources
from tests.waiting import DEADLINE, until

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


class Rendered:
    """What is rendered, and how often that was; others' turns between two pieces are counted."""

    def __init__(self) -> None:
        self.times = self.collected = 0
        self.now = 100.0
        self.go = asyncio.Event()
        self.scrapes = Scrapes(self.render, lambda: self.now, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def render(self, wanted: Format) -> Iterator[bytes]:
        self.collected += 1
        await self.go.wait()
        return self.pieces()

    def pieces(self) -> Iterator[bytes]:
        self.times += 1
        yield from (b"%d" % self.times, b"a", b"b")


def test_all_who_ask_meanwhile_and_for_a_second_after_get_one_rendering() -> None:
    async def scene() -> None:
        made = Rendered()
        asking = [asyncio.ensure_future(made.scrapes.get(TEXT)) for _ in range(100)]
        await asyncio.sleep(0)
        asking.pop().cancel()
        made.go.set()
        assert set(await asyncio.gather(*asking)) == {(b"1", b"a", b"b")}
        made.now += 0.99 * FRESH_SECONDS
        assert (await made.scrapes.get(TEXT))[0] == b"1"
        made.now += 0.02 * FRESH_SECONDS
        assert (await made.scrapes.get(TEXT))[0] == b"2"
        assert made.collected == made.times == 2

    asyncio.run(scene())


def test_clients_of_two_formats_cost_no_more_renderings_than_those_of_one() -> None:
    """Input: two clients, each of its own format, that ask again as soon as they were answered."""

    async def scene() -> None:
        made = Rendered()
        made.go.set()
        began = made.now
        for _ in range(5):
            await asyncio.gather(*(made.scrapes.get(wanted) for wanted in (TEXT, OPENMETRICS)))
        assert made.times == made.collected == 6
        assert made.now - began >= 5 * FRESH_SECONDS

    asyncio.run(scene())


def test_one_text_is_kept_not_one_of_each_format() -> None:
    """Verdict: the text in one format is nobody's any more when that in the other is begun."""

    alive: list[str] = []

    class Piece(bytes):
        """Says when nobody has it any more."""

        def __del__(self) -> None:
            alive.remove(self.decode())

    async def scene() -> None:
        found = []

        async def render(wanted: Format) -> Iterator[bytes]:
            found.append(list(alive))
            return pieces(wanted.content_type)

        def pieces(text: str) -> Iterator[bytes]:
            alive.append(text)
            yield Piece(text.encode())

        made = Rendered()
        scrapes = Scrapes(render, lambda: made.now, made.sleep)
        for wanted in (TEXT, OPENMETRICS, TEXT):
            assert await scrapes.get(wanted) == (wanted.content_type.encode(),)
            assert alive == [wanted.content_type]
        assert found == [[], [], []]

    asyncio.run(scene())


def test_what_was_kept_is_given_back_when_it_is_of_no_more_use(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        made = Rendered()
        made.go.set()
        kept: list[tuple[bytes, ...]] = []
        monkeypatch.setattr(module, "FRESH_SECONDS", 0.01)
        monkeypatch.setattr(module, "give_back", lambda: kept.append(made.scrapes._last))
        await made.scrapes.get(TEXT)
        await until(lambda: kept)
        assert kept == [()]

    asyncio.run(scene())


def test_a_rendering_that_fails_is_told_to_those_who_waited_and_tried_again_for_the_next() -> None:
    async def scene() -> None:
        fails = [True]

        async def render(wanted: Format) -> list[bytes]:
            await asyncio.sleep(0)
            if fails.pop():
                raise OSError("gone")
            return [b"x"]

        fails.insert(0, False)
        scrapes = Scrapes(render)
        assert all(
            isinstance(one, OSError)
            for one in await asyncio.gather(*(scrapes.get(TEXT) for _ in range(5)), return_exceptions=True)
        )
        assert await scrapes.get(TEXT) == (b"x",)

    asyncio.run(scene())


def test_each_address_has_its_own_pace() -> None:
    now = [0.0]
    sources = Sources(10, 20, lambda: now[0])
    assert [sources.wait("a") for _ in range(21)] == [pytest.approx(0)] * 20 + [pytest.approx(0)]
    assert sources.wait("a") == pytest.approx(0.1)
    assert sources.wait("b") == 0
    now[0] = 10
    assert sources.wait("a") == 0
    assert max(sources.wait("a") for _ in range(10_000)) <= LONGEST_SECONDS
    for number in range(3 * SOURCES):
        sources.wait(str(number))
    assert len(sources._due) == SOURCES


async def answer(query: Mapping[str, str]) -> Response:
    return Response(b"x")


async def one(port: int, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from *source* and be answered once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\nx")
    return reader, writer


def test_an_address_has_its_share_of_the_connections_and_takes_nobody_elses() -> None:
    async def scene() -> None:
        limits = ServerLimits(connections=12, connections_per_source=4, requests_per_second=1000)
        server = await serve({("GET", "/x"): answer}, hosts=EVERYWHERE, limits=limits)
        kept = [await one(server.port, source) for source in ("127.0.0.2", "127.0.0.1")]
        flood = [await one(server.port, "127.0.0.3") for _ in range(40)]
        for reader, _ in flood[:-4]:
            assert await reader.read() == b""
        for reader, writer in (*kept, *flood[-4:]):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\nx")
        for _, writer in (*kept, *flood):
            writer.close()
        await server.close()

    asyncio.run(asyncio.wait_for(scene(), DEADLINE))


def test_who_asks_too_often_waits_and_others_do_not() -> None:
    async def scene() -> None:
        # two hundredths at once: the first passes, the second would wait for long
        limits = ServerLimits(requests_per_second=0.01)
        server = await serve({("GET", "/x"): answer}, hosts=EVERYWHERE, limits=limits)
        reader, writer = await one(server.port, "127.0.0.3")
        writer.write(GET)
        waiting = asyncio.ensure_future(reader.readuntil(b"\r\n\r\nx"))
        for source in (*("127.0.0.1" for _ in range(20)), "127.0.0.4"):
            (await one(server.port, source))[1].close()
        assert not waiting.done()
        waiting.cancel()
        writer.close()
        await server.close()

    asyncio.run(asyncio.wait_for(scene(), DEADLINE))
