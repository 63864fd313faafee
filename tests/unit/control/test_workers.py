"""What control tells its workers, as they hear it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Sequence

import pytest

from nodeagent import channel
from nodeagent.channel import MESSAGE_BYTES, Channel, Message
from nodeagent.control.workers import Needs, Workers


class Supervisor(Channel):
    """Forks nothing: keeps the end of the channel that a worker would have."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.killed: list[int] = []

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        if message["op"] == "fork":
            self.ends.append(socket.socket(fileno=os.dup(descriptors[0])))
        elif message["op"] == "signal":
            assert message["signal"] == signal.SIGKILL
            self.killed.append(message["pid"])


def heard(end: socket.socket) -> list[Message]:
    """Return the messages that wait at a worker's *end*."""
    end.setblocking(False)
    messages = []
    try:
        while (received := socket.recv_fds(end, MESSAGE_BYTES, 16))[0]:
            messages.append(channel._message(received[0], received[1]))
    except BlockingIOError:
        return messages
    return messages


def test_the_nodes_addresses_change() -> None:
    """Verdict: workers hear of another address once, and one that starts later knows it from the first."""

    async def scene() -> None:
        supervisor = Supervisor()
        workers = Workers(
            asyncio.get_running_loop(), 1, supervisor, Needs(lambda *_: [], lambda _: None, lambda _: None)
        )
        workers.node(["10.0.0.1"])
        workers.start({"node_addresses": ["10.0.0.1"]}, ())
        workers.node(["10.0.0.1"])
        workers.node(["10.0.0.1", "10.0.0.2"])
        workers.node(["10.0.0.1", "10.0.0.2"])
        told = heard(supervisor.ends[0])
        assert [message["node_addresses"] for message in told if message["op"] == "start"] == [["10.0.0.1"]]
        assert [message["addresses"] for message in told if message["op"] == "node"] == [["10.0.0.1", "10.0.0.2"]]
        workers.exited(0, 1)
        await asyncio.sleep(0.01)
        assert heard(supervisor.ends[-1])[0]["node_addresses"] == ["10.0.0.1", "10.0.0.2"]
        for end in supervisor.ends:
            end.close()

    asyncio.run(scene())


def test_a_worker_that_cannot_be_told_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: control has no descriptor left for a large message. Verdict: who did not get it is
    killed, the other goes on, and the successor knows it.
    """

    async def scene() -> None:
        supervisor = Supervisor()
        workers = Workers(
            asyncio.get_running_loop(), 2, supervisor, Needs(lambda *_: [], lambda _: None, lambda _: None)
        )
        workers.start({"node_addresses": []}, ())
        for number in (1, 2):
            workers.forked(number, 1000 + number)
        make, files = channel.memory_file, iter((OSError(errno.EMFILE, "Too many open files"),))

        def memory_file(payload: bytes) -> int:
            if (error := next(files, None)) is not None:
                raise error
            return make(payload)

        monkeypatch.setattr(channel, "memory_file", memory_file)
        workers.node(["x" * MESSAGE_BYTES])
        assert supervisor.killed == [1001]
        assert ["node" in {message["op"] for message in heard(end)} for end in supervisor.ends] == [False, True]
        workers.exited(1001, -9)
        await asyncio.sleep(0.01)
        _, _, successor = supervisor.ends
        assert heard(successor)[0]["node_addresses"] == ["x" * MESSAGE_BYTES]
        for end in supervisor.ends:
            end.close()

    asyncio.run(scene())
