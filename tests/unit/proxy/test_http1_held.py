"""What waits for endpoints on connections of HTTP/1.1 counts in what their pod may make a worker hold."""

from __future__ import annotations

import asyncio

import pytest

from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.pool import Pool
from tests.unit.proxy.stage import Stage, answering, ok, play
from tests.unit.proxy.test_http1 import read_answer
from tests.waiting import until

HELD = 16 << 20
BODY = 200_000
POST = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n"
whole = answering(lambda head, body: ok(b"%d" % len(body)))


class Waiting:
    """Endpoints that nobody reaches until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._send = Pool.send
        self._waiting: list[tuple[Pool, Exchange]] = []

        def wait(pool: Pool, exchange: Exchange) -> None:
            exchange.pending = exchange.pending or []
            self._waiting.append((pool, exchange))

        monkeypatch.setattr(Pool, "send", wait)

    def let_go(self) -> None:
        for pool, exchange in self._waiting:
            self._send(pool, exchange)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(monkeypatch)


def held(stage: Stage) -> int:
    return stage.pods["client"].held.bytes


def test_what_waits_counts_until_an_endpoint_has_it(waiting: Waiting) -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(POST % 50_000 + b"a" * 40_000)
        await until(lambda: held(stage) == 40_000)
        waiting.let_go()
        await until(lambda: held(stage) == 0)
        writer.write(b"a" * 10_000)
        assert (await read_answer(reader))[1] == b"50000"
        assert not stage.pods["client"].held._holders

    play(whole, scene)


@pytest.mark.parametrize("aborts", [False, True])
def test_what_waits_counts_until_its_client_is_gone(waiting: Waiting, aborts: bool) -> None:
    async def scene(stage: Stage) -> None:
        _, writer = await stage.connect()
        writer.write(POST % 50_000 + b"a" * 40_000)
        await until(lambda: held(stage) == 40_000)
        writer.transport.abort() if aborts else writer.close()
        await until(lambda: held(stage) == 0)
        assert not stage.pods["client"].held._holders

    play(whole, scene)


def test_what_waits_behind_an_upgrade_counts(waiting: Waiting) -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n" + b"a" * 1000)
        await until(lambda: held(stage) == 1000)
        waiting.let_go()
        assert (await read_answer(reader))[1] == b"0"
        await until(lambda: held(stage) == 0)

    play(whole, scene)


def test_a_client_that_makes_too_much_wait_gives_way(waiting: Waiting) -> None:
    async def scene(stage: Stage) -> None:
        pod = stage.pods["client"]
        clients = [await stage.connect() for _ in range(200)]
        for _, writer in clients:
            writer.write(POST % BODY + b"a" * (BODY - 1))
        most = 0
        while not stage.log.records:
            await asyncio.sleep(0)
            most = max(most, pod.held.bytes)
        assert most <= HELD + BODY
        record = stage.log.records[0]
        assert (record["response_code"], record["response_flags"]) == (503, "UO")
        for _, writer in clients:
            writer.close()

    play(whole, scene, limits={"heldBytesPerPod": HELD})
