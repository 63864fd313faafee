"""Messages and descriptors between the daemon's processes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from nodeagent.channel import (
    DESCRIPTORS,
    MESSAGE_BYTES,
    MESSAGES_AT_ONCE,
    QUEUE_DESCRIPTORS,
    Channel,
    Outbox,
    decode,
    pair,
    receive,
)
from nodeagent.channel import memory_file as make_memory_file
from nodeagent.errors import ControlError
from nodeagent.messages import FROM_WORKER, Counted, Exited, FlowRows, FromSupervisor
from nodeagent.wire import LARGEST_BYTES, FileDescriptor, MessageDecoder, MessageError, encode
from tests.unit.descriptors import open_descriptors
from tests.waiting import DEADLINE


@dataclass(frozen=True, slots=True)
class Numbered:
    number: int
    files: tuple[FileDescriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Said: TypeAlias = Numbered | Text
WORDS: MessageDecoder[Said] = MessageDecoder((Numbered, Text))


def ignore(_: object = None) -> None:
    """Take no notice."""


def channel(
    loop: asyncio.AbstractEventLoop,
    end: socket.socket,
    heard: Callable[[Said], None] = ignore,
    closed: Callable[[], None] = ignore,
) -> Channel[Said, Said]:
    return Channel(loop, end, WORDS, heard=heard, misunderstood=ignore, closed=closed)


def exchange(*sent: Said) -> list[Said]:
    """Send messages from one end to the other; return what arrived."""

    async def run() -> list[Said]:
        loop = asyncio.get_running_loop()
        arrived: list[Said] = []
        ours, theirs = pair()
        sender = channel(loop, ours)
        receiver = channel(loop, theirs, arrived.append)
        for message in sent:
            sender.send(message)
        async with asyncio.timeout(DEADLINE):
            while len(arrived) < len(sent):
                await asyncio.sleep(0)
        sender.close()
        receiver.close()
        return arrived

    return asyncio.run(run())


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_last_words_of_the_dead_are_heard(spoilt: bool) -> None:
    """Input: more than is read in one turn, and what is no message before the end. Verdict: all up to that; nobody is
    told of the end, which is known.
    """
    arrived: list[Said] = []
    told: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        reader = channel(loop, ours, arrived.append, lambda: told.append("closed"))
        reader.send(Text("what it does not read any more"))
        for number in range(3 * MESSAGES_AT_ONCE):
            theirs.send(encode(Numbered(number))[0])
        if spoilt:
            theirs.send(b"{}")
            theirs.send(encode(Numbered(-1))[0])
        theirs.close()
        reader.send(Text("what it cannot read any more"))
        reader.hear_out()
        reader.hear_out()
        assert ours.fileno() == -1

    asyncio.run(run())
    assert arrived == [Numbered(number) for number in range(3 * MESSAGES_AT_ONCE)]
    assert told == []


def test_messages_arrive_in_order_with_their_descriptors() -> None:
    read, write = os.pipe()
    arrived = exchange(*(Numbered(number, (FileDescriptor(write),) * (number % 3)) for number in range(500)))
    assert all(isinstance(message, Numbered) for message in arrived)
    numbered = [message for message in arrived if isinstance(message, Numbered)]
    assert [message.number for message in numbered] == list(range(500))
    assert [len(message.files) for message in numbered] == [number % 3 for number in range(500)]
    for message in numbered:
        for descriptor in message.files:
            assert os.fstat(descriptor).st_ino == os.fstat(read).st_ino
            os.close(descriptor)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("size", [MESSAGE_BYTES - 100, MESSAGE_BYTES + 1, 20 << 20])
def test_a_message_of_any_size_arrives_whole(size: int) -> None:
    """A Service with thousands of endpoints is one message."""
    before = open_descriptors()
    large = Text("x" * size)
    assert exchange(large, Numbered(1)) == [large, Numbered(1)]
    assert open_descriptors() == before


def test_the_end_of_the_other_side_is_told_once() -> None:
    async def run() -> int:
        told = 0

        def closed() -> None:
            nonlocal told
            told += 1

        ours, theirs = pair()
        near = channel(asyncio.get_running_loop(), ours, closed=closed)
        theirs.close()
        while not told:
            await asyncio.sleep(0)
        near.send(Text("to nobody"))
        return told

    assert asyncio.run(run()) == 1


@pytest.fixture
def descriptors() -> Iterator[Callable[[], int]]:
    """How many descriptors this process has more than at the begin; none may be left at the end."""

    def count() -> int:
        return open_descriptors()

    before = count()
    yield lambda: count() - before
    assert count() == before


def heard(say: Callable[[socket.socket], None]) -> tuple[list[Said], list[str]]:
    """Let *say* use the other end as a worker that was taken over might; return what came through
    until something was misunderstood, and what that was, in words.
    """

    async def run() -> tuple[list[Said], list[str]]:
        loop = asyncio.get_running_loop()
        arrived: list[Said] = []
        misunderstood: list[MessageError] = []
        ours, theirs = pair()
        near: Channel[Said, Said] = Channel(
            loop, ours, WORDS, heard=arrived.append, misunderstood=misunderstood.append, closed=ignore
        )
        say(theirs)
        async with asyncio.timeout(DEADLINE):
            while not misunderstood:
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)  # what is heard at all is heard in the next turn
        near.close()
        theirs.close()
        return arrived, [str(error) for error in misunderstood]

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


def more_than_a_message_has(end: socket.socket) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    socket.send_fds(end, [encode(Numbered(1, (FileDescriptor(null),) * 250))[0]], [null] * 250)
    os.close(null)


PONG = b'{"op": "Numbered", "number": 1, "files": 0}'


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (in_file(lambda: os.eventfd(0)), "cannot be read"),
        (in_file(lambda: os.open("/dev/zero", os.O_RDONLY)), "cannot be read"),
        (in_file(lambda: os.open("/proc/self/status", os.O_RDONLY)), "cannot be read"),
        (in_file(lambda: memory_file(PONG)), "its memory file is not sealed"),
        (in_file(lambda: memory_file(PONG, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)), "is not sealed"),
        (in_file(lambda: memory_file(b"no message", 15)), "it is not JSON"),
        (in_file(larger_than_allowed), "at most 67108864 are allowed"),
        (many_descriptors, "it is not JSON"),
        (more_than_a_message_has, "its descriptors were more than this process may have"),
        (lambda end: end.send(b"[1]"), "it is not a JSON object"),
        (lambda end: end.send(b"memory file"), "it is not JSON"),
        (lambda end: end.send(b"[" * 100_000), "it is not JSON"),
        (lambda end: end.send(b'{"a": "\\ud800"}'), "it is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_and_blocks_nobody(
    say: Callable[[socket.socket], None], why: str, descriptors: Callable[[], int]
) -> None:
    """Verdict: nothing that follows is heard."""

    def say_more(end: socket.socket) -> None:
        say(end)
        end.send(PONG)
        end.send(b"{")

    arrived, misunderstood = heard(say_more)
    assert arrived == []
    assert len(misunderstood) == 1
    assert why in misunderstood[0]


@pytest.mark.parametrize("message", [Counted({"counts": "x" * (1 << 20)}), FlowRows(1, [{}] * (1 << 19), more=True)])
def test_what_a_worker_says_is_bounded(message: Counted | FlowRows, descriptors: Callable[[], int]) -> None:
    """A JSON object takes thirty times its text: control, which holds everything, may not be ended by one."""
    ours, theirs = pair()
    file = make_memory_file(encode(message)[0])
    socket.send_fds(theirs, [b"memory file"], [file])
    os.close(file)
    with pytest.raises(MessageError, match="at most 1048576 are allowed"):
        decode(receive(ours), FROM_WORKER)
    ours.close()
    theirs.close()


def test_an_end_that_does_not_read_is_dropped(descriptors: Callable[[], int]) -> None:
    """What it asks for and leaves holds descriptors here; they are bounded, and freed with the channel."""

    async def run() -> None:
        told: list[int] = []
        ours, theirs = pair()
        near = channel(asyncio.get_running_loop(), ours, closed=lambda: told.append(1))
        null = FileDescriptor(os.open("/dev/null", os.O_RDONLY))
        sent = 0
        while not told:
            near.send(Numbered(sent, (null,) * DESCRIPTORS))
            sent += DESCRIPTORS
            assert sent < QUEUE_DESCRIPTORS + 2 * DESCRIPTORS
        assert told == [1]
        os.close(null)
        theirs.close()

    asyncio.run(run())


def test_an_end_that_reads_may_be_sent_any_number_of_descriptors() -> None:
    null = FileDescriptor(os.open("/dev/null", os.O_RDONLY))

    async def run() -> int:
        loop = asyncio.get_running_loop()
        got = 0

        def took(message: Said) -> None:
            nonlocal got
            assert isinstance(message, Numbered)
            got += len(message.files)
            for each in message.files:
                os.close(each)

        ours, theirs = pair()
        sender = channel(loop, ours)
        reader = channel(loop, theirs, took)
        for number in range(1, 201):
            sender.send(Numbered(number, (null,) * DESCRIPTORS))
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
        near = channel(asyncio.get_running_loop(), ours)
        with pytest.raises(ControlError, match="at most 67108864 are carried"):
            near.send(Text("x" * LARGEST_BYTES))
        near.close()
        theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize(("code", "lost"), [(errno.ENOBUFS, True), (errno.ETOOMANYREFS, True), (errno.EPIPE, False)])
def test_an_outbox_says_that_it_has_lost_what_somebody_waits_for(
    monkeypatch: pytest.MonkeyPatch, code: int, lost: bool
) -> None:
    """Input: the kernel has no room for a message; or nobody is at the other end."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    ours, theirs = pair()
    outbox: Outbox[FromSupervisor] = Outbox(ours)
    monkeypatch.setattr(socket, "send_fds", refuse)
    outbox.send(Exited("worker", 1, 0))
    assert (outbox.lost, bool(outbox)) == (lost, False)
    ours.close()
    theirs.close()
