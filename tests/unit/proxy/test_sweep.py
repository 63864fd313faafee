"""The sweep over a worker's connections, when a pod holds very many."""

from __future__ import annotations

import asyncio

from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.revocation import SWEPT_A_TURN
from tests.unit.proxy.stage import VIP, Stage, answering, ok, play, read_request
from tests.waiting import until


class Ended(Carriage):
    """Carries a connection whose client's certificate has ended; notes that it is cut."""

    def __init__(self, cut: list[int]) -> None:
        self._cut = cut

    def reset(self) -> None:
        self._cut.append(1)


def test_thousands_of_connections_take_the_sweep_several_turns_and_all_are_looked_at() -> None:
    async def scene(stage: Stage) -> None:
        stage._sweeper.cancel()
        proxy, pod, cut = stage.proxy, stage.pods["client"], list[int]()
        for _ in range(3 * SWEPT_A_TURN + 1):
            connection = Connection(
                pod, "inbound", Peer("10.0.0.1", 1, "", "none", None), proxy.context.view.resolve(VIP, 80), 0.0
            )
            proxy.context.connections[connection.number] = connection
            connection.expires = 1.0
            connection.carriage = Ended(cut)
        gone = list(proxy.context.connections.values())[-1]
        proxy.revocation.sweep()
        seen = [len(cut)]
        proxy.context.connections.pop(gone.number)
        gone.closed = 1.0
        gone.carriage = None
        while len(cut) < 3 * SWEPT_A_TURN:
            await asyncio.sleep(0)
            seen.append(len(cut))
        assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) == SWEPT_A_TURN
        proxy.context.connections.clear()

    play(answering(lambda head, body: ok(head)), scene)


def test_what_a_pod_that_is_gone_keeps_open_is_closed() -> None:
    """Input: a connection that idles, and one whose answer comes when its pod is gone already. Each would keep the
    pod's network namespace as long as connections may idle, an hour.
    """
    late = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            if b"/late" in head:
                await late.wait()
            writer.write(ok(head))
            await writer.drain()

    async def scene(stage: Stage) -> None:
        readers = []
        for path in (b"/late", b"/"):
            reader, writer = await stage.connect()
            writer.write(b"GET %b HTTP/1.1\r\nhost: web\r\n\r\n" % path)
            readers.append(reader)
        await readers[1].readuntil(b"\r\n\r\n")
        await until(lambda: idle(stage) == 1, "one idles")
        for uid in ("client", "server"):  # whichever of them dialled
            stage.proxy.release(uid)
        await until(lambda: idle(stage) == 0, "none idles any more")
        late.set()
        assert b" 200 " in await readers[0].readuntil(b"\r\n\r\n")
        await until(lambda: idle(stage) == 0 and len(stage._tasks) == 0, "the application's end knows")

    play(handler, scene)


def idle(stage: Stage) -> int:
    return sum(len(pool.idle()) for pool in stage.proxy.routing.pools())
