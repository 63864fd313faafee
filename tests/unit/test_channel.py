"""Messages and descriptors between the daemon's processes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from nodeagent.channel import MESSAGE_BYTES, Channel, Message, pair


def exchange(*sent: tuple[Message, list[int]]) -> list[tuple[Message, list[int]]]:
    """Send messages from one end to the other; return what arrived."""

    async def run() -> list[tuple[Message, list[int]]]:
        loop = asyncio.get_running_loop()
        arrived: list[tuple[Message, list[int]]] = []
        ours, theirs = pair()
        sender = Channel(loop, ours, lambda message, descriptors: None, lambda: None)
        receiver = Channel(loop, theirs, lambda message, descriptors: arrived.append((message, descriptors)), lambda: None)
        for message, descriptors in sent:
            sender.send(message, descriptors)
        async with asyncio.timeout(10):
            while len(arrived) < len(sent):
                await asyncio.sleep(0.01)
        sender.close()
        receiver.close()
        return arrived

    return asyncio.run(run())


def test_messages_arrive_in_order_with_their_descriptors() -> None:
    read, write = os.pipe()
    arrived = exchange(*(({"number": number}, [write] * (number % 3)) for number in range(500)))
    assert [message["number"] for message, _ in arrived] == list(range(500))
    assert [len(descriptors) for _, descriptors in arrived] == [number % 3 for number in range(500)]
    for _, descriptors in arrived:
        for descriptor in descriptors:
            assert os.fstat(descriptor).st_ino == os.fstat(read).st_ino
            os.close(descriptor)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("size", [MESSAGE_BYTES - 100, MESSAGE_BYTES + 1, 20 << 20])
def test_a_message_of_any_size_arrives_whole(size: int) -> None:
    """A Service with thousands of endpoints is one message."""
    before = len(os.listdir("/proc/self/fd"))
    large: dict[str, Any] = {"text": "x" * size}
    [(first, none), (second, _)] = exchange((large, []), ({"after": True}, []))
    assert first == large
    assert none == []
    assert second == {"after": True}
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_other_side_is_told_once() -> None:
    async def run() -> int:
        told = 0

        def closed() -> None:
            nonlocal told
            told += 1

        ours, theirs = pair()
        channel = Channel(asyncio.get_running_loop(), ours, lambda message, descriptors: None, closed)
        theirs.close()
        await asyncio.sleep(0.05)
        channel.send({"to": "nobody"})
        return told

    assert asyncio.run(run()) == 1
