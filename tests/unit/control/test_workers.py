"""What control tells its workers, as they hear it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

import orjson

from nodeagent.channel import MESSAGE_BYTES, Channel, Message
from nodeagent.control.workers import Needs, Workers


class Supervisor(Channel):
    """Forks nothing: keeps the end of the channel that a worker would have."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        if message["op"] == "fork":
            self.ends.append(socket.socket(fileno=os.dup(descriptors[0])))


def heard(end: socket.socket) -> list[Message]:
    """Return the messages that wait at a worker's *end*."""
    end.setblocking(False)
    messages = []
    try:
        while payload := socket.recv_fds(end, MESSAGE_BYTES, 16)[0]:
            messages.append(orjson.loads(payload))
    except BlockingIOError:
        return messages
    return messages


def test_the_nodes_addresses_change() -> None:
    """Verdict: workers hear of another address once, and one that starts later knows it from the first."""

    async def scene() -> None:
        supervisor = Supervisor()
        workers = Workers(asyncio.get_running_loop(), 1, supervisor, Needs(lambda *_: [], lambda _: None, lambda _: None))
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
