"""The sweep over a worker's connections, when a pod holds very many."""

from __future__ import annotations

import asyncio

from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.revocation import SWEPT_A_TURN
from tests.unit.proxy.stage import VIP, Stage, answering, ok, play


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
