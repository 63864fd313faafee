"""A worker takes the snapshot's changes in without holding the pods' traffic up, and never half of one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from nodeagent.channel import MESSAGE_BYTES, Channel, pair
from nodeagent.config import ProxySettings
from nodeagent.control.snapshot_parts import parts
from nodeagent.mesh.entries import Entry, Workload
from nodeagent.mesh.entry_json import to_json
from nodeagent.messages import (
    FROM_WORKER,
    AskFlows,
    CertificateIssued,
    FlowRows,
    FromWorker,
    GenerationInForce,
    Listen,
    Ping,
    PodCaptured,
    PodReleased,
    Pong,
    SnapshotPart,
    SocketsMade,
    ToWorker,
)
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.proxy import Proxy
from nodeagent.proxy.serving import Serving
from nodeagent.proxy.view import Resolved
from nodeagent.proxy.worker import SWEEP_SECONDS, Worker
from nodeagent.pulse import Pulses
from nodeagent.vocabulary import Address, PodUid, SpiffeId
from nodeagent.wire import FileDescriptor, MessageError, Unchecked, encode
from tests.unit.proxy.stage import VIP, Originals, context
from tests.waiting import DEADLINE, until

PARTS, POLICIES = 3, 150


def policy(number: int) -> AuthorizationPolicy:
    return AuthorizationPolicy(
        "default",
        f"p{number}",
        "ALLOW",
        (Rule(operations=(Operation(methods=("GET",), paths=(f"/{number}/*", "/{*}/x")),)),),
    )


def workload(policies: tuple[str, ...] = ()) -> Workload:
    return Workload(
        uid=PodUid("server"),
        pod="server",
        namespace="default",
        node="n1",
        addresses=(Address("10.0.0.1"),),
        service_account="server",
        identity=SpiffeId("spiffe://cluster.local/ns/default/sa/server"),
        workload="server",
        app="server",
        version="v1",
        canonical_service="server",
        canonical_revision="v1",
        ready=True,
        enrolled=True,
        policies=policies,
    )


class Told:
    """A worker as control sees it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        near, far = pair()
        self.answers: list[FromWorker] = []
        self.ended = asyncio.Event()
        """Its channel has."""
        self.worker = Worker(loop, far, Pulses().claim())
        self.context = context(ProxySettings(), None)
        self.proxy = Proxy(self.context)
        self.worker._serving = Serving("0", self.proxy, Originals(VIP), self.worker._channel.send)
        self.end = near
        self.channel: Channel[FromWorker, ToWorker] = Channel(
            loop, near, FROM_WORKER, heard=self.answers.append, misunderstood=fail, closed=self.ended.set
        )

    def mesh(self, *entries: Entry, removals: tuple[str, ...] = ()) -> None:
        self.channel.send(SnapshotPart([to_json(entry) for entry in entries], removals, 1, more=False))

    async def answered(self, number: int) -> None:
        while not any(isinstance(answer, Pong) and answer.number == number for answer in self.answers):
            await asyncio.sleep(0)

    async def taken_in(self, number: int) -> None:
        """Wait for what was said before, and for what it started."""
        self.channel.send(Ping(number))
        await self.answered(number)
        while self.worker._tasks:
            await asyncio.sleep(0)
        self.channel.send(Ping(-number))
        await self.answered(-number)

    def in_force(self) -> list[int]:
        """Return the generations of which control heard that they are in force."""
        return [answer.generation for answer in self.answers if isinstance(answer, GenerationInForce)]


def fail(error: MessageError) -> None:
    raise error


def play(scene: Callable[[Told], Awaitable[None]]) -> None:
    async def run() -> None:
        told = Told()
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(told)
        finally:
            told.channel.close()
            told.worker._channel.close()

    uvloop.run(run())


def test_many_policies_come_into_force_at_once_and_the_loop_turns_meanwhile() -> None:
    async def scene(told: Told) -> None:
        view = told.context.view
        turns: list[int] = []
        keys = tuple(policy(number).key for number in range(PARTS * POLICIES))

        def turn() -> None:
            found = view.workload(PodUid("server"))
            turns.append(sum(view.policy(key) is not None for key in found.policies) if found is not None else -1)
            if turns[-1] < len(keys):
                told.context.loop.call_soon(turn)

        for part in range(PARTS):
            told.mesh(*(policy(number) for number in range(part * POLICIES, (part + 1) * POLICIES)))
        told.mesh(workload(keys))
        told.channel.send(Ping(1))
        turn()
        await told.answered(1)
        assert len(view.policies_of(view.workload(PodUid("server")) or workload())) == len(keys), (
            "what follows a change finds it in force"
        )
        assert set(turns) == {-1, len(keys)}, "half of a change was in force"
        assert len(turns) > PARTS, "the loop stood still"

    play(scene)


def test_a_change_waits_for_its_last_part() -> None:
    """Else a policy would be gone before the one that takes its place is there, and everybody be let in between."""

    async def scene(told: Told) -> None:
        view = told.context.view
        told.mesh(policy(1), workload((policy(1).key,)))
        told.channel.send(Ping(0))
        await told.answered(0)
        first, *others = parts([policy(2), workload((policy(2).key,))], [policy(1).key], 1)
        told.channel.send(first)
        told.channel.send(Ping(1))
        await told.answered(1)
        assert [entry.key for entry in view.policies()] == [policy(1).key]
        for part in others:
            told.channel.send(part)
        told.channel.send(Ping(2))
        await told.answered(2)
        assert [entry.key for entry in view.policies()] == [policy(2).key]
        assert [entry.key for entry in view.policies_of(view.workload(PodUid("server")) or workload())] == [
            policy(2).key
        ]

    play(scene)


def test_a_policy_that_changes_leaves_nothing_of_the_old_one() -> None:
    async def scene(told: Told) -> None:
        told.mesh(policy(1), workload((policy(1).key,)))
        told.channel.send(Ping(1))
        await told.answered(1)
        told.mesh(AuthorizationPolicy("default", "p1", "DENY", (Rule(),)))
        told.mesh(removals=(policy(2).key,))
        told.channel.send(Ping(2))
        await told.answered(2)
        (entry,) = told.context.view.policies()
        assert isinstance(entry, AuthorizationPolicy)
        assert entry.action == "DENY"
        assert list(told.proxy.guards.compiler._known) == [id(entry)]

    play(scene)


def test_messages_keep_their_order_whatever_fails() -> None:
    async def scene(told: Told) -> None:
        end, other = socket.socketpair()
        told.mesh(*(policy(number) for number in range(POLICIES)))
        told.channel.send(Listen(PodUid("nobody"), "inbound", 4, FileDescriptor(end.fileno())))
        told.channel.send(CertificateIssued({"identity": "without the rest"}))
        told.mesh(removals=(policy(0).key,))
        told.channel.send(Ping(1))
        await told.answered(1)
        assert len(list(told.context.view.policies())) == POLICIES - 1
        end.close()
        other.close()

    play(scene)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_listener_belongs_to_the_pod_that_it_was_told_of_for() -> None:
    """Input, in one turn: a listener of a pod, which goes and comes back, or is opened anew, and its
    next listener. Verdict: the first is closed, the second is served.
    """

    async def scene(told: Told) -> None:
        uid = PodUid("server")
        captured = PodCaptured(uid, 1, workload().identity)
        serving = told.worker._served()
        for between in ([PodReleased(uid), captured], [captured]):
            serving.captured(captured)
            old, new = listener(), listener()
            addresses = [old.getsockname(), new.getsockname()]
            told.worker._message(Listen(uid, "inbound", 4, FileDescriptor(old.detach())))
            for message in between:
                told.worker._message(message)
            told.worker._message(Listen(uid, "inbound", 4, FileDescriptor(new.detach())))
            while told.worker._tasks:
                await asyncio.sleep(0)
            (server,) = serving._servers[uid]
            assert server.sockets[0].getsockname() == addresses[1]
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*addresses[0])
            serving.released(PodReleased(uid))

    play(scene)


def test_a_listener_of_nobody_is_closed() -> None:
    async def scene(told: Told) -> None:
        uid = PodUid("server")
        serving = told.worker._served()
        stray = listener()
        address = stray.getsockname()
        assert serving.listen(Listen(uid, "inbound", 4, FileDescriptor(stray.detach()))) is None
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        serving.captured(PodCaptured(uid, 1, workload().identity))
        serving.stop_listening()
        late = listener()
        assert serving.listen(Listen(uid, "inbound", 4, FileDescriptor(late.detach()))) is None

    play(scene)


def test_what_cannot_be_taken_in_takes_nothing_along_and_is_never_said_to_be_in_force() -> None:
    """Nor is a later change, which may rest on it."""

    async def scene(told: Told) -> None:
        def change(generation: int, upserts: list[Unchecked]) -> None:
            told.channel.send(SnapshotPart(upserts, (), generation, more=False))

        change(1, [to_json(policy(1))])
        await told.taken_in(1)
        change(2, [{"kind": "of a later version"}, to_json(policy(2))])
        change(3, [to_json(policy(3))])
        await told.taken_in(2)
        assert [entry.key for entry in told.context.view.policies()] == [policy(number).key for number in (1, 2, 3)]
        assert told.in_force() == [1]

    play(scene)


def unknown(end: socket.socket) -> None:
    end.send(b'{"op": "Shutdown", "now": true}')


def half_of_a_change(end: socket.socket) -> None:
    """The first part comes with more descriptors than there is room for, as a large one may, and is lost."""
    part = SnapshotPart([to_json(policy(2))], (), 2, more=True)
    socket.send_fds(end, [encode(part)[0]], [end.fileno()] * 250)


def sockets_without_room(end: socket.socket) -> None:
    made = SocketsMade(PodUid("u"), 4, (FileDescriptor(end.fileno()),) * 250)
    socket.send_fds(end, [encode(made)[0]], made.sockets)


@pytest.mark.parametrize("say", [unknown, half_of_a_change, sockets_without_room])
def test_a_worker_that_does_not_understand_control_ends_its_channel(say: Callable[[socket.socket], None]) -> None:
    """Verdict: nothing that follows is in force, least of all a change's other half, and control sees
    the end of the channel, upon which it replaces the worker.
    """

    async def scene(told: Told) -> None:
        told.mesh(policy(1))
        await told.taken_in(1)
        say(told.end)
        told.mesh(policy(3))
        await told.ended.wait()
        assert [entry.key for entry in told.context.view.policies()] == [policy(1).key]
        assert told.in_force() == [1]

    play(scene)


def test_flows_are_told_in_packets() -> None:
    """Verdict: each part fits one, and together they are all connections, with the longest names there are."""

    async def scene(told: Told) -> None:
        pod = PodState(PodUid("u"), 1, "", lambda family, count: None)
        peer = Peer("10.0.0.1", 1, "spiffe://cluster.local/ns/default/sa/".ljust(2048, "x"), "mutual_tls", None)
        target = Resolved(Address("10.0.0.2"), 80, "http", None, ())
        for number in range(300):
            told.context.connections[number] = Connection(pod, "inbound", peer, target, 0.0)
        told.channel.send(AskFlows(1))
        await until(lambda: any(isinstance(answer, FlowRows) and not answer.more for answer in told.answers))
        answers = [answer for answer in told.answers if isinstance(answer, FlowRows)]
        assert max(len(encode(answer)[0]) for answer in answers) <= MESSAGE_BYTES
        assert sum(len(answer.flows) for answer in answers) == 300
        assert len(answers) < 8

    play(scene)


def test_a_worker_without_connections_sweeps_seldom_and_the_first_one_finds_its_clock_right() -> None:
    """Verdict: the first connection has the next sweep come soon, as ever, and so has the word to end."""

    async def scene(told: Told) -> None:
        worker = told.worker
        ledger = told.proxy._entrance.ledger
        told.context.stir = worker._stir
        pod = PodState(PodUid("u"), 1, "", lambda family, count: None)
        connection = Connection(
            pod, "inbound", Peer("10.0.0.1", 1, "", "none", None), told.context.view.resolve(VIP, 80), 0.0
        )
        await until(lambda: worker._resting)
        assert worker._next_sweep - worker.loop.time() > SWEEP_SECONDS
        stale = told.context.now
        ledger.opened(connection)
        assert told.context.now > stale
        assert 0 < worker._next_sweep - worker.loop.time() <= SWEEP_SECONDS
        ledger.closed(connection)
        await until(lambda: worker._resting)
        worker._on_finish()
        assert worker._next_sweep - worker.loop.time() <= SWEEP_SECONDS

    play(scene)
