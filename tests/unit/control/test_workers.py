"""What control tells its workers, as they hear it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from nodeagent import channel
from nodeagent.channel import MESSAGE_BYTES, decode, receive
from nodeagent.control.snapshot_parts import LARGEST_ENTRY
from nodeagent.control.worker_process import Needs
from nodeagent.control.workers import Workers
from nodeagent.errors import ControlError, KernelError
from nodeagent.mesh.entries import Delta
from nodeagent.messages import (
    TO_WORKER,
    AskFlows,
    Counted,
    Drain,
    Finish,
    Finished,
    FlowRows,
    Fork,
    NeedSockets,
    NodeAddresses,
    Ping,
    PodCaptured,
    Pong,
    Signal,
    SnapshotPart,
    SocketsMade,
    StartWorker,
    Succeeded,
    ToSupervisor,
    ToWorker,
)
from nodeagent.parts import Parts
from nodeagent.policy.model import Jwks
from nodeagent.vocabulary import PodUid, SpiffeId
from nodeagent.wire import FileDescriptor, encode
from tests.waiting import DEADLINE, until


class Supervisor:
    """Forks nothing: keeps the end of the channel that a worker would have."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.numbers: list[int] = []
        """By which each was asked for."""
        self.killed: list[int] = []

    def send(self, message: ToSupervisor) -> None:
        if isinstance(message, Fork):
            self.numbers.append(message.number)
            self.ends.append(socket.socket(fileno=os.dup(message.theirs)))
        elif isinstance(message, Signal):
            assert message.signal == signal.SIGKILL
            self.killed.append(message.pid)


def start() -> StartWorker:
    null = FileDescriptor(0)
    return StartWorker(0, {}, (), 1, null, null)


def heard(end: socket.socket) -> list[ToWorker]:
    """Return the messages that wait at a worker's *end*."""
    end.setblocking(False)
    messages = []
    try:
        while (packet := receive(end)).payload:
            messages.append(decode(packet, TO_WORKER))
    except BlockingIOError:
        pass
    return messages


def started(message: ToWorker) -> tuple[str, ...]:
    assert isinstance(message, StartWorker)
    return message.node_addresses


class Scene:
    """Workers with a supervisor, and the sockets that *sockets* makes."""

    def __init__(self, count: int = 1, sockets: Callable[..., list[socket.socket]] = lambda *_: []) -> None:
        self.supervisor = Supervisor()
        self.reports: list[dict[str, object]] = []
        needs = Needs(sockets, self.reports.append, lambda _: None)
        self.workers = Workers(
            asyncio.get_running_loop(),
            count,
            self.supervisor,
            needs,
            drain_seconds=3.0,
            stop_seconds=20.0,
            hand_over_seconds=40.0,
        )

    async def filled(self, count: int) -> socket.socket:
        """Return the last of *count* ends, when so many workers were asked for."""
        async with asyncio.timeout(DEADLINE):
            while len(self.supervisor.ends) < count:
                await asyncio.sleep(0)
        return self.supervisor.ends[-1]

    async def killed(self) -> int:
        """Return the pid of the worker that is killed, when one is."""
        async with asyncio.timeout(DEADLINE):
            while not self.supervisor.killed:
                await asyncio.sleep(0)
        return self.supervisor.killed[0]

    def close(self) -> None:
        for end in self.supervisor.ends:
            end.close()
        for worker in (*self.workers._slots.values(), *self.workers._draining):
            worker.channel.close()


Sockets = Callable[..., list[socket.socket]]


def play(scene: Callable[[Scene], Awaitable[None]], count: int = 1, sockets: Sockets = lambda *_: []) -> None:
    async def run() -> None:
        stage = Scene(count, sockets)
        try:
            await scene(stage)
        finally:
            stage.close()

    asyncio.run(run())


def test_the_nodes_addresses_change() -> None:
    """Verdict: workers hear of another address once, and one that starts later knows it from the first."""

    async def scene(stage: Scene) -> None:
        workers = stage.workers
        workers.node(["10.0.0.1"])
        workers.fill(start())
        workers.node(["10.0.0.1"])
        workers.node(["10.0.0.1", "10.0.0.2"])
        workers.node(["10.0.0.1", "10.0.0.2"])
        told = heard(await stage.filled(1))
        assert started(told[0]) == ("10.0.0.1",)
        assert [message for message in told if isinstance(message, NodeAddresses)] == [
            NodeAddresses(("10.0.0.1", "10.0.0.2"))
        ]
        workers.exited(0, 1)
        assert started(heard(await stage.filled(2))[0]) == ("10.0.0.1", "10.0.0.2")

    play(scene)


def test_what_a_worker_counted_last_is_heard_though_its_death_is_known_first() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        stage.workers.forked(1, 1001)
        end = await stage.filled(1)
        stage.workers.drain(1.0)
        for number in range(10):
            end.send(encode(Counted({"number": number}))[0])
        end.close()
        stage.supervisor.ends.clear()
        stage.workers.exited(1001, 0)
        assert stage.reports == [{"number": number} for number in range(10)]
        assert not stage.supervisor.killed

    play(scene)


def test_a_worker_that_cannot_be_told_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: control has no descriptor left for a large message. Verdict: who did not get it is
    killed, the other goes on, and the successor knows it.
    """

    async def scene(stage: Scene) -> None:
        workers, ends = stage.workers, stage.supervisor.ends
        workers.fill(start())
        for number in (1, 2):
            workers.forked(number, 1000 + number)
        make = channel.memory_file
        files = iter((OSError(errno.EMFILE, "Too many open files"),))

        def memory_file(payload: bytes) -> FileDescriptor:
            if (error := next(files, None)) is not None:
                raise error
            return make(payload)

        monkeypatch.setattr(channel, "memory_file", memory_file)
        large = ("x" * MESSAGE_BYTES,)
        workers.node(large)
        assert stage.supervisor.killed == [1001]
        assert [NodeAddresses(large) in heard(end) for end in ends] == [False, True]
        workers.exited(1001, -9)
        assert started(heard(await stage.filled(3))[0]) == large

    play(scene, count=2)


@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b'{"op": "Unknown"}',
        b'{"op": "Fork", "role": "worker", "number": 1}',
        b'{"op": "Pong", "number": 1, "connections": "many"}',
        b'{"op": "FlowRows", "number": 1, "flows": [1], "more": false}',
        *(encode(NeedSockets(PodUid(uid), 4, 1))[0] for uid in ("", "u" * 200_000, "u\nworker 1 died", "../u")),
    ],
    ids=lambda said: ascii(said[:60]),
)
def test_a_worker_that_says_what_no_worker_says_is_killed_and_replaced(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Verdict: by name, and alone; nothing that it says after that is heard."""

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        stage.workers.forked(1, 1001)
        end = await stage.filled(1)
        end.send(said)
        end.send(encode(Pong(1, 7))[0])
        assert await stage.killed() == 1001
        assert not stage.workers.ready()
        stage.workers.exited(1001, -9)
        assert started(heard(await stage.filled(2))[0]) == ()

    play(scene)
    (line,) = [record.getMessage() for record in caplog.records if "says what no worker says" in record.msg]
    assert line.startswith("worker 0 (pid 1001) says what no worker says (")
    assert len(line) < 300
    assert line.isprintable()


def asked(stage: Scene) -> SocketsMade:
    """Let the first worker ask for two sockets; return the answer."""
    (worker,) = stage.workers._slots.values()
    heard(stage.supervisor.ends[0])
    stage.workers._hear(worker, NeedSockets(PodUid("u"), 4, 2))
    (answer,) = heard(stage.supervisor.ends[0])
    assert isinstance(answer, SocketsMade)
    return answer


def test_a_worker_gets_the_sockets_that_it_asked_for() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        answer = asked(stage)
        assert (answer.uid, answer.family, len(answer.sockets)) == ("u", 4, 2)
        for descriptor in answer.sockets:
            os.close(descriptor)

    play(scene, sockets=lambda uid, family, count: [socket.socket() for _ in range(count)])


@pytest.mark.parametrize("error", [KeyError("u"), KernelError("gone"), OSError(errno.EMFILE, "Too many open files")])
def test_where_no_sockets_can_be_made_the_worker_hears_so_at_once(error: Exception) -> None:
    def fail(*_: object) -> list[socket.socket]:
        raise error

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        assert asked(stage) == SocketsMade(PodUid("u"), 4, ())

    play(scene, sockets=fail)


def test_where_sockets_cannot_be_sent_the_worker_hears_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: control may have no more descriptors, which sending takes."""

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        monkeypatch.setattr(channel, "duplicated", _unless_none)
        assert asked(stage) == SocketsMade(PodUid("u"), 4, ())

    made: list[socket.socket] = []

    def sockets(uid: str, family: int, count: int) -> list[socket.socket]:
        made.extend(socket.socket() for _ in range(count))
        return made

    play(scene, sockets=sockets)
    assert [each.fileno() for each in made] == [-1, -1]


def _unless_none(descriptors: list[FileDescriptor]) -> list[FileDescriptor]:
    if descriptors:
        raise OSError(errno.EMFILE, "Too many open files")
    return []


def test_a_slot_that_cannot_be_filled_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a worker died, and control may have no more descriptors for the next one's channel."""
    from nodeagent.control import workers as module

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        failures = iter((OSError(errno.EMFILE, "Too many open files"),))

        def pair() -> tuple[socket.socket, socket.socket]:
            if (error := next(failures, None)) is not None:
                raise error
            return channel.pair()

        monkeypatch.setattr(module, "pair", pair)
        monkeypatch.setattr(module, "PING_SECONDS", 0.0)
        stage.workers.exited(0, -9)
        assert started(heard(await stage.filled(2))[0]) == ()

    play(scene)


def told(end: socket.socket, kind: type[ToWorker]) -> list[ToWorker]:
    """Return what a worker at *end* was told of *kind* since it last read."""
    return [message for message in heard(end) if isinstance(message, kind)]


async def up(stage: Scene, number: int) -> socket.socket:
    """Let the worker that was asked for by *number* be the process 1000 + number, and answer."""
    end = stage.supervisor.ends[stage.supervisor.numbers.index(number)]
    stage.workers.forked(number, 1000 + number)
    end.send(encode(Pong(0, 0))[0])
    await until(lambda: any(worker.pid == 1000 + number and worker.ready for worker in stage.workers._slots.values()))
    return end


def test_it_is_ready_when_every_slot_has_a_worker_that_answers() -> None:
    async def scene(stage: Scene) -> None:
        assert stage.workers.missing() == ["a worker is not up"]
        stage.workers.fill(start())
        await up(stage, 1)
        assert stage.workers.missing() == ["a worker is not up"]
        await up(stage, 2)
        assert stage.workers.missing() == []
        stage.workers.exited(1001, -9)
        assert stage.workers.missing() == ["a worker is not up"]

    play(scene, count=2)


def test_workers_of_an_earlier_control_serve_on_until_their_successors_are_up() -> None:
    """Verdict: one hears of every change, and drains when every slot is filled by another, not before."""

    async def scene(stage: Scene) -> None:
        ours, theirs = channel.pair()
        parts = Parts()
        stage.workers.adopt(7, theirs)
        async with stage.workers.run(parts):
            stage.workers.fill(start())
            stage.workers.node(["10.0.0.1"])
            for _ in range(3):
                await asyncio.sleep(0)  # the part that ends it has begun
            assert heard(ours) == [Succeeded(), NodeAddresses(("10.0.0.1",))]
            await up(stage, 2)
            await until(lambda: told(ours, Drain))
            parts.stop()
            for pid in (7, 1002):
                asyncio.get_running_loop().call_later(0.05, stage.workers.exited, pid, 0)
        ours.close()

    play(scene)


def test_a_worker_of_an_earlier_control_is_not_silent_while_nobody_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: one that answers, and a control that was at its first listing for an hour before it filled its slots."""
    monkeypatch.setattr("nodeagent.control.workers.PING_SECONDS", 0.05)

    async def scene(stage: Scene) -> None:
        ours, theirs = channel.pair()
        stage.workers.adopt(7, theirs)
        stage.workers._draining[0].last_pong -= 3600
        stage.workers.fill(start())
        await until(lambda: told(ours, Ping))
        assert stage.supervisor.killed == []
        ours.close()

    play(scene)


def test_an_answer_is_the_rows_of_all_and_who_dies_is_not_waited_for() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        first, second = [await up(stage, number) for number in (1, 2)]
        question = asyncio.create_task(stage.workers.ask(AskFlows))
        asked_first: list[ToWorker] = []
        await until(lambda: asked_first.extend(told(first, AskFlows)) or asked_first)
        (asked,) = asked_first
        assert isinstance(asked, AskFlows)
        for rows, more in (([{"id": "a"}], True), ([{"id": "b"}], True), ([], False)):
            first.send(encode(FlowRows(asked.number, rows, more=more))[0])
        second.send(encode(FlowRows(asked.number, [{"id": "c"}], more=True))[0])
        second.send(encode(FlowRows(asked.number + 1, [{"id": "never asked"}], more=False))[0])
        await until(lambda: [{"id": "c"}] in [rows for _, rows in stage.workers._slots[1].replies.values()])
        stage.workers.exited(1002, -9)
        assert sorted(row["id"] for row in await question) == ["a", "b", "c"]

    play(scene, count=2)


def test_a_reload_starts_the_new_worker_before_the_old_one_drains() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        old = await up(stage, 1)
        page = stage.workers.routes()["POST", "/reload"]
        reload = asyncio.create_task(page({}))
        await stage.filled(2)
        assert told(old, Drain) == []
        await up(stage, 2)
        assert (await reload).body == b'{"workers":[1002]}\n'
        assert told(old, Drain) == [Drain(3.0)]
        stage.workers.exited(1001, 0)
        assert len(stage.supervisor.ends) == 2, "who was told to go is not replaced"

    play(scene)


def test_a_reload_of_what_is_wrong_replaces_nobody() -> None:
    """Input: agent.yaml cannot be read. Verdict: the question is answered by why, and the workers are as they were."""

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        await up(stage, 1)

        def wrong() -> None:
            raise ControlError("agent.yaml: redirekt: no such key is known")

        stage.workers.reloading = wrong
        with pytest.raises(ControlError, match="redirekt"):
            await stage.workers.routes()["POST", "/reload"]({})
        assert list(stage.workers.pids()) == [1001]

    play(scene)


def test_while_a_reload_waits_the_old_worker_hears_of_every_change_and_is_waited_for() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        old = await up(stage, 1)
        reload = asyncio.create_task(stage.workers.reload())
        await stage.filled(2)
        heard(old)
        stage.workers.apply(Delta((Jwks("http://x"),)))
        assert len(told(old, SnapshotPart)) == 1
        assert "a draining worker (pid 1001)" in stage.workers.behind(stage.workers.generation)
        await up(stage, 2)
        assert await reload == [1002]

    play(scene)


def test_a_new_worker_that_dies_at_its_start_is_replaced_and_the_reload_goes_on() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        old = await up(stage, 1)
        reload = asyncio.create_task(stage.workers.reload())
        await stage.filled(2)
        stage.workers.forked(2, 1002)
        stage.workers.exited(1002, 1)
        await stage.filled(3)
        assert told(old, Drain) == []
        await up(stage, 3)
        assert await reload == [1003]
        assert told(old, Drain) == [Drain(3.0)]
        assert [worker.pid for worker in (*stage.workers._slots.values(), *stage.workers._draining)] == [1003, 1001]

    play(scene)


@dataclass
class Patience:
    """Stands for the time in which a new worker may come up: it is over when the test says so."""

    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, condition: Callable[[], bool], seconds: float = 0.0) -> bool:
        await self.over.wait()
        return condition()


def test_a_reload_whose_new_worker_does_not_come_up_leaves_the_old_one_with_all_that_is_captured_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input: the new one died, and the one that replaces it does not answer either. Verdict: that one is
    killed, nobody is in no list, and the old one gets the pod that came meanwhile.
    """

    async def scene(stage: Scene) -> None:
        workers = stage.workers
        workers.fill(start())
        old = await up(stage, 1)
        patience = Patience()
        monkeypatch.setattr(workers, "_wait", patience.wait)
        reload = asyncio.create_task(workers.reload())
        await stage.filled(2)
        workers.forked(2, 1002)
        workers.exited(1002, 1)
        await stage.filled(3)
        workers.forked(3, 1003)
        pod = PodCaptured(PodUid("u"), 1, SpiffeId("spiffe://td/ns/n/sa/s"))
        workers.enrol(pod, {})
        heard(old)
        patience.over.set()
        with pytest.raises(ControlError, match="did not come up within 10 s"):
            await reload
        assert heard(old) == [pod]
        assert stage.supervisor.killed == [1003]
        assert [worker.pid for worker in (*workers._slots.values(), *workers._draining)] == [1001, 1003]
        assert workers.ready()

    play(scene)


def test_a_reload_puts_no_dead_worker_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        await up(stage, 1)
        patience = Patience()
        monkeypatch.setattr(stage.workers, "_wait", patience.wait)
        reload = asyncio.create_task(stage.workers.reload())
        await stage.filled(2)
        stage.workers.exited(1001, -9)
        patience.over.set()
        with pytest.raises(ControlError, match="where it still lives"):
            await reload
        await up(stage, 2)
        assert stage.workers.ready()
        assert stage.supervisor.killed == []

    play(scene)


def test_a_stop_ends_a_reload_that_waits() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        await up(stage, 1)
        reload = asyncio.create_task(stage.workers.reload())
        await stage.filled(2)
        stage.workers.forked(2, 1002)
        stop = asyncio.create_task(stage.workers.stop(1.0))
        with pytest.raises(ControlError, match="the agent stops"):
            await reload
        for pid in (1001, 1002):
            stage.workers.exited(pid, 0)
        await stop
        assert len(stage.supervisor.ends) == 2

    play(scene)


def test_a_stop_lets_what_is_open_end_and_then_drains() -> None:
    async def scene(stage: Scene) -> None:
        parts = Parts()
        async with stage.workers.run(parts):
            stage.workers.fill(start())
            end = await up(stage, 1)
            finishing = asyncio.create_task(stage.workers.finish())
            await until(lambda: told(end, Finish))
            assert not finishing.done()
            end.send(encode(Finished())[0])
            await finishing
            parts.stop()
            asyncio.get_running_loop().call_later(0.05, stage.workers.exited, 1001, 0)
        assert told(end, Drain) == [Drain(20.0)]
        assert len(stage.supervisor.ends) == 1, "nobody is replaced any more"

    play(scene)


def test_an_entry_that_cannot_be_sent_takes_no_other_along_and_is_named() -> None:
    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        end = await up(stage, 1)
        heard(end)
        large = Jwks("http://x", "k" * (LARGEST_ENTRY + 1))
        stage.workers.apply(Delta((large, Jwks("http://y"))))
        (part,) = told(end, SnapshotPart)
        assert isinstance(part, SnapshotPart)
        assert [each["uri"] for each in part.upserts] == ["http://y"]
        (words,) = stage.workers.untold()
        assert words.startswith("jwks/http://x is not in the workers: ")
        stage.workers.apply(Delta((Jwks("http://x"),)))
        assert stage.workers.untold() == []

    play(scene)


def test_a_control_that_was_held_up_kills_no_worker_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a worker that has answered, and a control whose loop did not turn, and asked nobody, for longer than a
    worker may be silent, as on a machine that does much else; then the worker answers no more. Verdict: it is killed
    for the second alone.
    """
    monkeypatch.setattr("nodeagent.control.workers.SILENT_SECONDS", 2.0)
    monkeypatch.setattr("nodeagent.control.workers.PING_SECONDS", 0.05)

    async def scene() -> None:
        made = Scene()
        made.workers.fill(start())
        end = await made.filled(1)
        made.workers.forked(made.supervisor.numbers[0], 4321)
        end.send(encode(Pong(1, 0))[0])
        await until(made.workers.ready)
        heard(end)
        time.sleep(2.5)  # control's loop is held
        await until(lambda: any(isinstance(message, Ping) for message in heard(end)))
        assert made.supervisor.killed == []
        await until(lambda: made.supervisor.killed[:1] == [4321])

    asyncio.run(scene())


def test_workers_without_connections_are_asked_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict: as often as ever while one has a connection, or is not up yet."""
    monkeypatch.setattr("nodeagent.control.workers.PING_SECONDS", 0.01)
    monkeypatch.setattr("nodeagent.control.workers.QUIET_SECONDS", 3600.0)

    async def scene(stage: Scene) -> None:
        def due() -> float:
            return stage.workers._next_ping - asyncio.get_running_loop().time()

        stage.workers.fill(start())
        await up(stage, 1)
        await until(lambda: due() > 60.0)
        stage.workers.exited(1001, signal.SIGKILL)
        await stage.filled(2)
        assert due() < 1.0
        end = await up(stage, 2)
        end.send(encode(Pong(0, 1))[0])
        heard(end)
        pings: list[Ping] = []

        def asked_often() -> bool:
            pings.extend(message for message in heard(end) if isinstance(message, Ping))
            return due() < 1.0 and len(pings) > 1

        await until(asked_often)

    play(scene)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_draining_worker_that_hangs_or_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """Input: an old worker that drains after a reload, and answers nothing any more; or answers, and stays beyond
    its time. Verdict: it is killed, and no other.
    """
    monkeypatch.setattr("nodeagent.control.workers.SILENT_SECONDS", 3 if hangs else 60)
    monkeypatch.setattr("nodeagent.control.workers.OVERDUE_SECONDS", 60 if hangs else -2.5)
    monkeypatch.setattr("nodeagent.control.workers.PING_SECONDS", 0.05)

    async def scene(stage: Scene) -> None:
        stage.workers.fill(start())
        old = await up(stage, 1)
        reload = asyncio.create_task(stage.workers.reload())
        await stage.filled(2)
        new = await up(stage, 2)
        await reload

        def answer(end: socket.socket) -> None:
            for message in heard(end):
                if isinstance(message, Ping):
                    end.send(encode(Pong(message.number, 1))[0])

        def killed() -> list[int]:
            answer(new)
            if not hangs and not stage.supervisor.killed:
                answer(old)
            return stage.supervisor.killed

        await until(killed)
        assert stage.supervisor.killed == [1001]

    play(scene)


def test_a_worker_that_gets_no_processor_is_not_killed_for_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a silent worker that waits for a processor, as while the kernel verifies a program on a machine with one;
    then one that has used seconds of it. Verdict: the second is killed.
    """
    monkeypatch.setattr("nodeagent.control.workers.SILENT_SECONDS", 0.1)
    monkeypatch.setattr("nodeagent.control.workers.PING_SECONDS", 0.05)
    ticks = 100
    looked: list[int] = []

    def stat(pid: int) -> str:
        looked.append(pid)
        return f"{pid} (python) R 1" + " 0" * 9 + f" {ticks} 0"

    monkeypatch.setattr("nodeagent.control.workers.stat_of", stat)

    async def scene() -> None:
        nonlocal ticks
        made = Scene()
        made.workers.fill(start())
        await made.filled(1)
        made.workers.forked(made.supervisor.numbers[0], 4321)
        await until(lambda: looked[3:] != [])
        assert made.supervisor.killed == []
        ticks += 100 * os.sysconf("SC_CLK_TCK")
        await until(lambda: made.supervisor.killed[:1] == [4321])

    asyncio.run(scene())
