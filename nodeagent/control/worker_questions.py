"""Questions to all workers at once, whose answers come in parts and within a bound of time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

from nodeagent.control.worker_process import WorkerProcess
from nodeagent.messages import AskFlows, AskMetrics, FlowRows
from nodeagent.wire import Unchecked

ANSWER_SECONDS: Final = 1.0
"""Who is silent for so long is left out."""
MAX_FLOWS: Final = 50_000
"""Of one worker in one answer."""


class Questions:
    """Those that were put and not answered yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    async def ask(
        self, question: type[AskFlows] | type[AskMetrics], workers: Sequence[WorkerProcess]
    ) -> list[Unchecked]:
        """Put *question* to *workers*; return the rows of all answers."""
        number = next(self._numbers)
        futures = []
        for worker in workers:
            future: asyncio.Future[list[Unchecked]] = asyncio.get_running_loop().create_future()
            worker.replies[number] = (future, [])
            futures.append(future)
            worker.channel.send(question(number))
        if not futures:
            return []
        done, _ = await asyncio.wait(futures, timeout=ANSWER_SECONDS)
        for worker in workers:
            worker.replies.pop(number, None)
        rows: list[Unchecked] = []
        for future in done:
            rows += future.result()
        return rows

    def answered(self, worker: WorkerProcess, message: FlowRows) -> None:
        """Take a part of an answer; one to a question that nobody waits for any more is nothing."""
        reply = worker.replies.get(message.number)
        if reply is None:
            return
        future, rows = reply
        rows.extend(message.flows[: MAX_FLOWS - len(rows)])
        if not message.more and not future.done():
            future.set_result(rows)

    def gone(self, worker: WorkerProcess) -> None:
        """The worker is dead: what it said is its answer."""
        for future, rows in worker.replies.values():
            if not future.done():
                future.set_result(rows)
