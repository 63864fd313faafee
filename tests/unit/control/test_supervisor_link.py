"""What control hears from the supervisor: what an earlier control left, and how its children fare."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import orjson
import pytest

from nodeagent.channel import Channel, memory_file, pair
from nodeagent.control.heartbeat import Heartbeat
from nodeagent.control.supervisor_link import SupervisorLink
from nodeagent.messages import (
    TO_SUPERVISOR,
    WORKER,
    Beats,
    Begin,
    BeginHeartbeat,
    Drop,
    Exited,
    Forked,
    FromSupervisor,
    Keep,
    Kept,
    Orphan,
    Still,
    Stilled,
    ToSupervisor,
)
from nodeagent.parts import Parts
from nodeagent.pulse import Pulses
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, MessageError
from tests.unit.control.scene import certificate, play
from tests.waiting import until


class Children:
    def __init__(self) -> None:
        self.told: list[object] = []
        self.ends: list[socket.socket] = []

    def adopt(self, pid: int, end: socket.socket) -> None:
        self.told.append(("adopt", pid))
        self.ends.append(end)

    def forked(self, number: int, pid: int) -> None:
        self.told.append(("forked", number, pid))

    def exited(self, pid: int, status: int) -> None:
        self.told.append(("exited", pid, status))


class Stage:
    """A link, and the supervisor at its other end."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        self.end = theirs
        self.heard: list[ToSupervisor] = []
        self.supervisor: Channel[ToSupervisor, FromSupervisor] = Channel(
            loop, theirs, TO_SUPERVISOR, heard=self.heard.append, misunderstood=fail, closed=lambda: None
        )
        self.link = SupervisorLink(loop, ours)
        self.children = Children()
        self.link.observe(WORKER, self.children)


def fail(error: MessageError) -> None:
    raise error


def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole() -> None:
        stage = Stage()
        await scene(stage)
        stage.supervisor.close()
        for end in stage.children.ends:
            end.close()
        await stage.link.ended()

    play(whole)


def test_what_an_earlier_control_left_is_known_before_it_begins() -> None:
    async def scene(stage: Stage) -> None:
        null = FileDescriptor(os.open("/dev/null", os.O_RDONLY))
        held = certificate("a")
        file = memory_file(orjson.dumps(held.to_json()))
        with socket.socket() as listener:
            files = {
                "u/inbound/6/2": FileDescriptor(listener.fileno()),
                "u/netns": null,
                f"{held.identity}/certificate": file,
            }
            stage.supervisor.send(Kept(files))
            stage.supervisor.send(Orphan(WORKER, 7, FileDescriptor(listener.fileno())))
        os.close(file)
        stage.supervisor.send(Begin())
        await stage.link.begun()
        inherited = stage.link.inherited
        assert list(inherited.listeners[PodUid("u")]) == [("inbound", 6, 2)]
        assert inherited.networks.keys() == {"u"}
        assert inherited.certificates == [held]
        assert stage.children.told == [("adopt", 7)]
        inherited.listeners[PodUid("u")]["inbound", 6, 2].close()
        os.close(inherited.networks.popitem()[1])
        os.close(null)

    run(scene)


def test_children_hear_how_they_fare() -> None:
    async def scene(stage: Stage) -> None:
        stage.supervisor.send(Forked(WORKER, 1, 100))
        stage.supervisor.send(Exited(WORKER, 100, -9))
        await until(lambda: len(stage.children.told) == 2)
        assert stage.children.told == [("forked", 1, 100), ("exited", 100, -9)]

    run(scene)


def test_a_role_that_nobody_looks_after_is_what_no_supervisor_says() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.supervisor.send(Exited("collector", 100, 0))
        with pytest.raises(MessageError, match="no role is called 'collector'"):
            await stage.link.ended()
        stage.supervisor.close()

    play(scene)


def test_more_descriptors_than_a_message_carries_are_kept_in_several() -> None:
    async def scene(stage: Stage) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        stage.link.keep({f"u/{number}": null for number in range(450)})
        await until(lambda: len(stage.heard) == 3)
        kept = [name for message in stage.heard if isinstance(message, Keep) for name in message.files]
        assert kept == [f"u/{number}" for number in range(450)]
        for message in stage.heard:
            assert isinstance(message, Keep)
            for descriptor in message.files.values():
                os.close(descriptor)
        os.close(null)

    run(scene)


def test_the_heartbeat_begins_when_told_and_ends_before_what_is_left_stops() -> None:
    """Verdict: not ready without; leaving waits until the supervisor says that it has ended."""

    async def scene(stage: Stage) -> None:
        pulse = Pulses().claim()
        parts = Parts()
        heartbeat = Heartbeat(stage.link, pulse, settle_seconds=0.0)
        assert heartbeat.missing() == ["there is no heartbeat: no worker's event loop turns"]
        left: list[str] = []

        async def whole() -> None:
            async with heartbeat.run(parts):
                heartbeat.begin(parts, 2.5, 0)
                await until(pulse.begun)
                stage.supervisor.send(Beats(felt=True))
                await until(lambda: not heartbeat.missing())
            left.append("left")

        work = asyncio.create_task(whole())
        await until(lambda: any(isinstance(message, Still) for message in stage.heard))
        (beat,) = (message for message in stage.heard if isinstance(message, BeginHeartbeat))
        assert beat.timeout == 2.5
        os.close(beat.heart)
        assert left == []
        stage.supervisor.send(Stilled())
        await work
        assert left == ["left"]
        parts.stop()

    run(scene)


def test_listeners_of_slots_that_are_no_more_are_nobodys() -> None:
    """Input: a daemon of two workers is succeeded by one of one. Verdict: what nobody would accept on is closed
    here, and at the supervisor by its key.
    """

    async def scene(stage: Stage) -> None:
        with socket.socket() as listener:
            keys = [f"u/{direction}/4/{slot}" for direction in ("inbound", "outbound") for slot in (0, 1)]
            stage.supervisor.send(Kept({key: FileDescriptor(listener.fileno()) for key in keys}))
        stage.supervisor.send(Begin())
        await stage.link.begun()
        left = stage.link.inherited.listeners[PodUid("u")]
        had = dict(left)
        stage.link.relinquish(slots=1)
        assert list(left) == [("inbound", 4, 0), ("outbound", 4, 0)]
        assert [one for one in had if had[one].fileno() < 0] == [("inbound", 4, 1), ("outbound", 4, 1)]
        await until(lambda: stage.heard == [Drop("u/inbound/4/1"), Drop("u/outbound/4/1")])
        for each in left.values():
            each.close()

    run(scene)
