"""A client that asks steadily, for tests of what must not be noticed: run in a pod, it says what came of it.

steady.py WHOM…    to each WHOM, a host: HTTP on new connections and on a kept one (port 80), and lines that
                   are echoed over one TCP connection that stays open (port 9000); to http://HOST only the
                   first two. For each line on stdin it prints as JSON what was tried and how often it came
                   to what; it ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, defaultdict

PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 30.0
REQUEST = b"GET / HTTP/1.1\r\nhost: steady\r\n%b\r\n"
FAILURES = (OSError, EOFError, TimeoutError, AssertionError)
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
counts: dict[str, Counter[str]] = defaultdict(Counter)


async def ask(ends: Ends, *, last: bool) -> bool:
    """Send a request, read the answer; say whether the connection goes on."""
    reader, writer = ends
    writer.write(REQUEST % (b"connection: close\r\n" if last else b""))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    assert b" 200 " in head.split(b"\r\n")[0], head
    return b"connection: close" not in head


async def requests(host: str, *, kept: bool) -> None:
    """Ask again and again; *kept*: over one connection, as long as the other end keeps it."""
    what = f"{'kept' if kept else 'new'} {host}"
    ends: Ends | None = None
    while True:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                ends = ends or await asyncio.open_connection(host, 80)
                if not await ask(ends, last=not kept):
                    ends[1].close()
                    ends = None
            counts[what]["ok"] += 1
        except FAILURES as error:
            counts[what][repr(error)] += 1
            ends = None
        await asyncio.sleep(PAUSE_SECONDS)


async def stream(host: str) -> None:
    """Have lines echoed until that fails."""
    what = f"stream {host}"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(host, 9000)
        while True:
            writer.write(b"line\n")
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await reader.readline() == b"line\n"
            counts[what]["ok"] += 1
            await asyncio.sleep(PAUSE_SECONDS)
    except FAILURES as error:
        counts[what][repr(error)] += 1


async def main(whom: list[str]) -> None:
    hosts = [each.removeprefix("http://") for each in whom]
    clients = [asyncio.create_task(requests(host, kept=kept)) for kept in (False, True) for host in hosts]
    clients += [asyncio.create_task(stream(host)) for host in hosts if host in whom]
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(counts), flush=True)
    for each in clients:
        each.cancel()


asyncio.run(main(sys.argv[1:]))
