"""Names of sinks' servers: one that is not answered is waited for by nobody else, and by nobody twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from nodeagent.logs.sinks.names import ServerNames


class SilentServer:
    """A name server that answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def look_up(self, host: str) -> list[str]:
        self.asked.append(host)
        self.answers.wait()
        if host == "unknown":
            raise OSError("no such name")
        return ["192.0.2.1", "192.0.2.2"]


@pytest.fixture
def server() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.answers.set()


async def gives_up(names: ServerNames, host: str) -> None:
    waiting = asyncio.create_task(names.addresses(host))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_lookup_that_nobody_waits_for_any_more_is_the_next_one_s(server: SilentServer) -> None:
    async def test() -> None:
        names = ServerNames(server.look_up)
        for _ in range(5):
            await gives_up(names, "slow")
        server.answers.set()
        assert await names.addresses("slow") == ["192.0.2.1", "192.0.2.2"]
        assert server.asked == ["slow"], "one, however often it was given up"
        await names.addresses("slow")
        assert server.asked == ["slow"] * 2, "what was told once is looked up anew"

    asyncio.run(test())


def test_other_names_and_addresses_do_not_wait(server: SilentServer) -> None:
    async def test() -> None:
        silent = ServerNames(server.look_up)
        for number in range(20):
            await gives_up(silent, f"slow-{number}")
        assert await silent.addresses("192.0.2.7") == ["192.0.2.7"]
        assert await silent.addresses("2001:db8::1") == ["2001:db8::1"]
        assert await ServerNames(lambda _: ["192.0.2.9"]).addresses("fast") == ["192.0.2.9"]

    asyncio.run(test())


def test_the_first_address_that_takes_a_connection_is_taken(server: SilentServer) -> None:
    server.answers.set()

    async def connect(address: str) -> str:
        if address == "192.0.2.1":
            raise ConnectionRefusedError
        return address

    async def test() -> None:
        names = ServerNames(server.look_up)
        assert await names.connect("host", connect) == "192.0.2.2"
        with pytest.raises(OSError, match="no such name"):
            await names.connect("unknown", connect)
        with pytest.raises(ConnectionRefusedError):
            await names.connect("192.0.2.1", connect)

    asyncio.run(test())
