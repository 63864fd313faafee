"""Ask again and again for what must be refused, run in a pod: a new connection each, 50 times a
second, the targets in turn.

usage: insistent.py RATE HOST:PORT…      for each line on standard input, prints as JSON what came
                                         of the requests so far; ends with its input

Outcomes: the status of an answer, or the error. What is answered with 2xx is told with the time and
the target.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import json
import sys
import time

PATIENCE = 2.0
AT_ONCE = 200
"""Requests that wait at a time: a target that swallows them must not fill the machine."""


class Insistent:
    """One client: it never stops asking, whatever it is told."""

    def __init__(self, rate: float, targets: list[tuple[str, int]]) -> None:
        self._pause, self._targets = 1 / rate, targets
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.answered: list[str] = []
        self._waiting = 0

    async def run(self) -> None:
        tasks, turn = set(), 0
        due = time.monotonic()
        while True:
            due = max(due + self._pause, time.monotonic() - 1)  # a machine that stood still is not made up for
            await asyncio.sleep(due - time.monotonic())
            if self._waiting >= AT_ONCE:
                self.outcomes["not asked"] += 1
                continue
            turn += 1
            task = asyncio.ensure_future(self._once(*self._targets[turn % len(self._targets)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _once(self, host: str, port: int) -> None:
        self._waiting += 1
        try:
            outcome = await asyncio.wait_for(_ask(host, port), PATIENCE)
        except TimeoutError:
            outcome = "no answer"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, type(error).__name__)
        finally:
            self._waiting -= 1
        self.outcomes[outcome] += 1
        if outcome.startswith("2"):
            self.answered.append(f"{time.time():.3f} {host}:{port}")


async def _ask(host: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /about HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        line = (await reader.readline()).split()
        return line[1].decode(errors="replace") if len(line) > 1 else "closed"
    finally:
        writer.close()


async def main(rate: float, targets: list[tuple[str, int]]) -> None:
    client = Insistent(rate, targets)
    asking = asyncio.ensure_future(client.run())
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(
            json.dumps({"outcomes": client.outcomes, "answered": client.answered[:20], "count": len(client.answered)}),
            flush=True,
        )
        assert not asking.done(), asking.exception()
    asking.cancel()


if __name__ == "__main__":
    places = [place.rpartition(":") for place in sys.argv[2:]]
    asyncio.run(main(float(sys.argv[1]), [(host.strip("[]"), int(port)) for host, _, port in places]))
