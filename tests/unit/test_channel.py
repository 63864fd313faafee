"""Messages and descriptors between the daemon's processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodeagent.channel import DESCRIPTORS, LARGEST_BYTES, MESSAGE_BYTES, QUEUE_DESCRIPTORS, Channel, Message, pair
from nodeagent.errors import ControlError


def exchange(*sent: tuple[Message, list[int]]) -> list[tuple[Message, list[int]]]:
    """Send messages from one end to the other; return what arrived."""

    async def run() -> list[tuple[Message, list[int]]]:
        loop = asyncio.get_running_loop()
        arrived: list[tuple[Message, list[int]]] = []
        ours, theirs = pair()
        sender = Channel(loop, ours, lambda message, descriptors: None, lambda: None)
        receiver = Channel(
            loop, theirs, lambda message, descriptors: arrived.append((message, descriptors)), lambda: None
        )
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


@pytest.fixture
def descriptors() -> Iterator[Callable[[], int]]:
    """How many descriptors this process has more than at the begin; none may be left at the end."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    yield lambda: count() - before
    assert count() == before


def heard(say: Callable[[socket.socket], None]) -> tuple[list[Message], int]:
    """Let *say* use the other end as a worker that was taken over might; return what came through,
    and how often the end was told.
    """

    async def run() -> tuple[list[Message], int]:
        loop, arrived, told = asyncio.get_running_loop(), [], []
        ours, theirs = pair()
        channel = Channel(loop, ours, lambda message, _: arrived.append(message), lambda: told.append(1))
        say(theirs)
        theirs.close()
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.005)
        channel.close()
        return arrived, len(told)

    return asyncio.run(run())


def in_file(make: Callable[[], int]) -> Callable[[socket.socket], None]:
    def say(end: socket.socket) -> None:
        descriptor = make()
        socket.send_fds(end, [b"memory file"], [descriptor])
        os.close(descriptor)

    return say


def memory_file(content: bytes, seals: int = 0) -> int:
    descriptor = os.memfd_create("message", os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def larger_than_allowed() -> int:
    descriptor = os.memfd_create("message", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, (64 << 20) + 1)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 15)
    return descriptor


def many_descriptors(end: socket.socket) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    socket.send_fds(end, [b"no message"], [null] * 200)
    os.close(null)


@pytest.mark.parametrize(
    "say",
    [
        in_file(lambda: os.eventfd(0)),
        in_file(lambda: os.open("/dev/zero", os.O_RDONLY)),
        in_file(lambda: os.open("/proc/self/status", os.O_RDONLY)),
        in_file(lambda: memory_file(b'{"op": "pong"}')),
        in_file(lambda: memory_file(b'{"op": "pong"}', fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)),
        in_file(lambda: memory_file(b"no message", 15)),
        in_file(larger_than_allowed),
        many_descriptors,
        lambda end: end.send(b"[1]"),
        lambda end: end.send(b"memory file"),
        lambda end: end.send(b"[" * 100_000),
        lambda end: end.send(b'{"a": "\\ud800"}'),
    ],
)  # fmt: skip
def test_what_is_no_message_ends_the_channel_and_blocks_nobody(
    say: Callable[[socket.socket], None], descriptors: Callable[[], int]
) -> None:
    assert heard(say) == ([], 1)


def test_an_end_that_does_not_read_is_dropped(descriptors: Callable[[], int]) -> None:
    """What it asks for and leaves holds descriptors here; they are bounded, and freed with the channel."""

    async def run() -> None:
        told: list[int] = []
        ours, theirs = pair()
        channel = Channel(asyncio.get_running_loop(), ours, lambda message, _: None, lambda: told.append(1))
        null = os.open("/dev/null", os.O_RDONLY)
        sent = 0
        while not told:
            channel.send({"op": "sockets"}, [null] * DESCRIPTORS)
            sent += DESCRIPTORS
            assert sent < QUEUE_DESCRIPTORS + 2 * DESCRIPTORS
        assert told == [1]
        os.close(null)
        theirs.close()

    asyncio.run(run())


def test_an_end_that_reads_may_be_sent_any_number_of_descriptors() -> None:
    null = os.open("/dev/null", os.O_RDONLY)

    async def run() -> int:
        loop, got = asyncio.get_running_loop(), 0

        def took(_: Message, found: list[int]) -> None:
            nonlocal got
            got += len(found)
            for each in found:
                os.close(each)

        ours, theirs = pair()
        sender, reader = (
            Channel(loop, ours, lambda message, _: None, lambda: None),
            Channel(loop, theirs, took, lambda: None),
        )
        for number in range(1, 201):
            sender.send({"op": "sockets"}, [null] * DESCRIPTORS)
            while got < number * DESCRIPTORS:
                await asyncio.sleep(0)
        sender.close()
        reader.close()
        return got

    assert asyncio.run(run()) == 200 * DESCRIPTORS > QUEUE_DESCRIPTORS
    os.close(null)


def test_what_no_reader_takes_is_not_sent(descriptors: Callable[[], int]) -> None:
    async def run() -> None:
        ours, theirs = pair()
        channel = Channel(asyncio.get_running_loop(), ours, lambda message, _: None, lambda: None)
        with pytest.raises(ControlError, match="at most 67108864 are carried"):
            channel.send({"text": "x" * LARGEST_BYTES}, [0])
        channel.close()
        theirs.close()

    asyncio.run(run())
