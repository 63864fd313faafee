"""The sweep over a worker's connections, when a pod holds very many."""

from __future__ import annotations

import asyncio
from typing import Any

from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.pipeline import SWEPT_A_TURN
from tests.unit.proxy.stage import VIP, Stage, answering, ok, play


class Ended:
    """An HTTP connection whose client's certificate has ended; notes that it is cut."""

    def __init__(self, cut: list[int]) -> None:
        self.transport, self._cut, self.touched = self, cut, 0.0

    def get_extra_info(self, name: str) -> Any:
        return None

    def abort(self) -> None:
        self._cut.append(1)


def test_thousands_of_connections_take_the_sweep_several_turns_and_all_are_looked_at() -> None:
    async def scene(stage: Stage) -> None:
        stage._sweeper.cancel()
        pipeline, pod, cut = stage.pipeline, stage.pods["client"], list[int]()
        for _ in range(3 * SWEPT_A_TURN + 1):
            connection = Connection(
                pod, "inbound", Peer("10.0.0.1", 1, "", "none", None), pipeline.context.view.resolve(VIP, 80), 0.0
            )
            pipeline.context.connections[connection.number] = connection
            connection.expires, connection.http = 1.0, Ended(cut)
        gone = list(pipeline.context.connections.values())[-1]
        pipeline.sweep()
        seen = [len(cut)]
        pipeline.context.connections.pop(gone.number)
        gone.closed, gone.http = 1.0, None
        while len(cut) < 3 * SWEPT_A_TURN:
            await asyncio.sleep(0)
            seen.append(len(cut))
        assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) == SWEPT_A_TURN
        pipeline.context.connections.clear()

    play(answering(lambda head, body: ok(head)), scene)
