"""The proxy workers as control sees them: slots that must be filled, and everything a worker has to
be told.

A listener belongs to a slot, not to a process: whoever fills the slot gets it, so a backlog
survives its worker.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

import orjson

from nodeagent.channel import DESCRIPTORS, LARGEST_BYTES, MESSAGE_BYTES, Channel, pair
from nodeagent.codec import FileDescriptor, MessageError, Unchecked
from nodeagent.errors import ControlError, KernelError, translated
from nodeagent.mesh.entries import Delta, Entry
from nodeagent.mesh.entry_json import to_json
from nodeagent.messages import (
    FROM_WORKER,
    WORKER,
    AskFlows,
    AskMetrics,
    CertificateIssued,
    Counted,
    Drain,
    Finish,
    Finished,
    FlowRows,
    Fork,
    FromWorker,
    GenerationInForce,
    Listen,
    NeedSockets,
    NodeAddresses,
    Ping,
    PodCaptured,
    PodReleased,
    Pong,
    Signal,
    SnapshotPart,
    SocketsMade,
    StartWorker,
    Succeeded,
    ToSupervisor,
    ToWorker,
)
from nodeagent.redirect.pod import ListenerId
from nodeagent.supervisor import SILENT_SECONDS
from nodeagent.vocabulary import Family, PodUid

PING_SECONDS: Final = 1.0
RESPAWN_LIMIT: Final = 20
"""Deaths within a minute after which a worker is restarted only once a second."""
LARGEST_ENTRY: Final = LARGEST_BYTES - MESSAGE_BYTES
"""Bytes of an entry as JSON: its message holds little else."""
REMOVALS_AT_ONCE: Final = 500
_FRAME_BYTES: Final = 1000
"""Of a message around its entries."""
MAX_FLOWS: Final = 50_000
"""Of one worker in one answer."""
log = logging.getLogger("nodeagent.control")


class WorkerProcess:
    """One worker process and control's end of its channel."""

    def __init__(self, slot: int, number: int, pid: int = 0) -> None:
        self.slot = slot
        self.number = number
        self.pid = pid
        self.channel: Channel[FromWorker, ToWorker]
        self.ready = self.finished = self.killed = False
        self.last_pong = 0.0
        self.generation = 0
        """Of the snapshot: the last one that is in force in it, as it says."""
        self.connections = 0
        self.replies: dict[int, tuple[asyncio.Future[list[Unchecked]], list[Unchecked]]] = {}


class State:
    """What a new worker is told first: the snapshot, certificates, pods and listeners as they stand."""

    def __init__(self) -> None:
        self.start: StartWorker | None = None
        self.entries: dict[str, Entry] = {}
        self.certificates: dict[str, CertificateIssued] = {}
        self.pods: dict[str, PodCaptured] = {}
        self.listeners: dict[str, dict[ListenerId, socket.socket]] = {}


@dataclass(frozen=True, slots=True)
class Needs:
    """Where control takes what workers ask for, and puts what they report."""

    sockets: Callable[[str, Family, int], list[socket.socket]]
    metrics: Callable[[Unchecked], None]
    restarted: Callable[[int], None]


class TellsSupervisor(Protocol):
    """The channel to the supervisor, as far as workers need it."""

    def send(self, message: ToSupervisor) -> None:
        """Queue *message*; its descriptors are duplicated."""


class Workers:
    """Fills ``count`` slots, replaces what dies, and sends every change to all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, supervisor: TellsSupervisor, needs: Needs) -> None:
        self._loop = loop
        self.count = count
        self._supervisor = supervisor
        self._needs = needs
        self._state = State()
        self._numbers = itertools.count(1)
        self._pings = itertools.count(1)
        self._slots: dict[int, WorkerProcess] = {}
        self._draining: list[WorkerProcess] = []
        self._adopted: list[WorkerProcess] = []
        self._deaths: list[float] = []
        self._stopping = False
        self.generation = time.time_ns() // 1_000_000
        """Of the snapshot: counts its changes, from where no earlier control came, whose last
        acknowledgements may be on their way.
        """
        self.unsent: dict[str, str] = {}
        """Entries that cannot be sent, and why; workers keep what they had."""

    # -- slots --

    def start(self, start: StartWorker) -> None:
        """Fill the slots; each worker is told *start* first, with its own slot."""
        self._state.start = start
        for slot in range(self.count):
            self._spawn(slot)
        self._loop.call_later(PING_SECONDS, self._ping)

    def node(self, addresses: Sequence[str]) -> None:
        """The node's own addresses, from which probes come, are *addresses*."""
        start = self._state.start
        if start is not None and start.node_addresses != tuple(addresses):
            self._state.start = replace(start, node_addresses=tuple(addresses))
            self._broadcast(NodeAddresses(tuple(addresses)))

    def adopt(self, pid: int, end: socket.socket) -> None:
        """Take over a worker that an earlier control started, with that one's *end* of its channel.

        It gets what it needs and hears of every change, as one that drains, and drains itself when
        :meth:`retire_adopted` says so.
        """
        worker = WorkerProcess(-1, next(self._numbers), pid)
        self._connect(worker, end)
        self._draining.append(worker)
        self._adopted.append(worker)
        worker.channel.send(Succeeded())

    def retire_adopted(self, drain_seconds: float) -> None:
        for worker in self._adopted:
            worker.channel.send(Drain(drain_seconds))
        self._adopted.clear()

    def ready(self) -> bool:
        """Say whether every slot is filled by a worker that answers."""
        return len(self._slots) == self.count and all(worker.ready for worker in self._slots.values())

    def _answers(self, worker: WorkerProcess) -> bool:
        return self._loop.time() - worker.last_pong < SILENT_SECONDS

    def _spawn(self, slot: int) -> WorkerProcess:
        """Have a worker forked for *slot*, and tell it everything. Raises OSError where there is no
        room for its channel.
        """
        worker = WorkerProcess(slot, next(self._numbers))
        worker.last_pong = self._loop.time()
        ours, theirs = pair()
        numbers = (FileDescriptor(theirs.fileno()), FileDescriptor(ours.fileno()))
        try:
            self._supervisor.send(Fork(WORKER, worker.number, *numbers))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._slots[slot] = worker
        self._connect(worker, ours)
        self._tell_everything(worker)
        return worker

    def _connect(self, worker: WorkerProcess, end: socket.socket) -> None:
        worker.channel = Channel(
            self._loop,
            end,
            FROM_WORKER,
            heard=functools.partial(self._hear, worker),
            refused=functools.partial(self._refuse, worker),
            closed=functools.partial(self._kill, worker),
        )

    def forked(self, number: int, pid: int) -> None:
        """The supervisor forked worker *number*."""
        for worker in (*self._slots.values(), *self._draining):
            if worker.number == number:
                worker.pid = pid
                if worker.killed:
                    self._kill(worker)

    def exited(self, pid: int, status: int) -> None:
        """A worker is gone: its slot is filled again at once, unless it was told to go."""
        for worker in list(self._draining):
            if worker.pid == pid:
                self._draining.remove(worker)
                worker.channel.close()
        for slot, worker in list(self._slots.items()):
            if worker.pid != pid:
                continue
            worker.channel.close()
            del self._slots[slot]
            self._fail_replies(worker)
            if not self._stopping:
                log.error(
                    "worker %d (pid %d) died with status %d and is replaced; its connections are lost",
                    slot,
                    pid,
                    status,
                )
                self._needs.restarted(slot)
                self._loop.call_later(self._delay(), self._respawn, slot)

    def _respawn(self, slot: int) -> None:
        if self._stopping or slot in self._slots:
            return
        try:
            self._spawn(slot)
        except OSError as error:
            log.error("slot %d cannot be filled: %s; it is tried again", slot, error.strerror)
            self._loop.call_later(PING_SECONDS, self._respawn, slot)

    def _delay(self) -> float:
        now = self._loop.time()
        self._deaths = [death for death in self._deaths if now - death < 60] + [now]
        return 0.0 if len(self._deaths) < RESPAWN_LIMIT else 1.0

    # -- what workers are told --

    def _tell_everything(self, worker: WorkerProcess) -> None:
        state = self._state
        if state.start is not None:
            self._tell(worker, replace(state.start, slot=worker.slot))
        for part in parts(state.entries.values(), (), self.generation):
            self._tell(worker, part)
        for certificate in state.certificates.values():
            self._tell(worker, certificate)
        for pod in state.pods.values():
            self._tell_pod(worker, pod)
        self._tell(worker, Ping(0))

    def _tell_pod(self, worker: WorkerProcess, pod: PodCaptured) -> None:
        self._tell(worker, pod)
        for (direction, family, slot), listener in self._state.listeners.get(pod.uid, {}).items():
            if slot == worker.slot:
                self._tell(worker, Listen(pod.uid, direction, family, FileDescriptor(listener.fileno())))

    def apply(self, delta: Delta) -> None:
        """Send the changed entries of the snapshot, as its next generation."""
        upserts = [entry for entry in delta.upserts if self._fits(entry)]
        if not upserts and not delta.removals:
            return
        self.generation += 1
        for key in delta.removals:
            self._state.entries.pop(key, None)
        for entry in upserts:
            self._state.entries[entry.key] = entry
        for part in parts(upserts, delta.removals, self.generation):
            self._broadcast(part)

    def _fits(self, entry: Entry) -> bool:
        """Say whether *entry* can be sent. Documents are bounded, so that each can; one that cannot
        takes no other along.
        """
        try:
            size = len(orjson.dumps(to_json(entry)))
            why = f"{size} bytes, at most {LARGEST_ENTRY} are carried" if size > LARGEST_ENTRY else ""
        except TypeError as error:
            why = str(error)
        if not why:
            self.unsent.pop(entry.key, None)
        elif self.unsent.get(entry.key) != why:
            self.unsent[entry.key] = why
            log.error("%s cannot be sent to the workers: %s", entry.key, why)
        return not why

    def behind(self, generation: int) -> list[str]:
        """Return the workers, in words, in which *generation* of the snapshot is not in force."""
        slots = [
            f"worker {worker.slot} (pid {worker.pid})"
            for worker in self._slots.values()
            if worker.generation < generation
        ]
        return slots + [
            f"a draining worker (pid {worker.pid})" for worker in self._draining if worker.generation < generation
        ]

    def entry(self, key: str) -> Entry | None:
        """Return the snapshot's entry of *key*."""
        return self._state.entries.get(key)

    def certificate(self, identity: str, message: CertificateIssued) -> None:
        self._state.certificates[identity] = message
        self._broadcast(message)

    def forget(self, identity: str) -> None:
        """No pod of the node has *identity* any more: later workers do not get its key."""
        self._state.certificates.pop(identity, None)

    def enrol(self, pod: PodCaptured, listeners: dict[ListenerId, socket.socket]) -> None:
        """A pod's traffic is captured: its listeners go to the slots they belong to."""
        self._state.pods[pod.uid] = pod
        self._state.listeners[pod.uid] = listeners
        for worker in self._slots.values():
            self._tell_pod(worker, pod)

    def release(self, uid: PodUid) -> None:
        """The pod *uid* is captured no more."""
        if self._state.pods.pop(uid, None) is not None:
            self._state.listeners.pop(uid, None)
            self._broadcast(PodReleased(uid))

    def _broadcast(self, message: ToWorker) -> None:
        for worker in (*self._slots.values(), *self._draining):
            self._tell(worker, message)

    def _tell(self, worker: WorkerProcess, message: ToWorker) -> None:
        """Send what a worker must know. One that it cannot be sent to, for want of descriptors or
        memory here, would serve on by what is no longer in force.
        """
        try:
            worker.channel.send(message)
        except OSError as error:
            log.error(
                "worker %d (pid %d) cannot be told anything and is killed: %s", worker.slot, worker.pid, error.strerror
            )
            self._kill(worker)

    # -- what workers say --

    def _refuse(self, worker: WorkerProcess, error: MessageError) -> None:
        """A pod may have taken the worker over: what it says from now on is worth nothing."""
        log.error("worker %d (pid %d) says what no worker says (%s) and is killed", worker.slot, worker.pid, error)
        self._kill(worker)

    def _hear(self, worker: WorkerProcess, message: FromWorker) -> None:
        match message:
            case NeedSockets():
                self._hand_sockets(worker, message)
            case Pong():
                worker.last_pong = self._loop.time()
                worker.ready = True
                worker.connections = message.connections
            case GenerationInForce():
                worker.generation = max(worker.generation, min(message.generation, self.generation))
            case Finished():
                worker.finished = True
            case Counted():
                self._needs.metrics(message.report)
            case FlowRows():
                self._collect(worker, message)
            case _:
                assert_never(message)

    def _kill(self, worker: WorkerProcess) -> None:
        """End a worker that cannot be talked to; :meth:`exited` fills its slot again."""
        worker.killed = True
        worker.channel.close()
        if worker.pid:
            self._signal(worker, signal.SIGKILL)

    def _hand_sockets(self, worker: WorkerProcess, need: NeedSockets) -> None:
        """Answer with as many sockets as can be made and sent; without any, the worker's waiters fail at once."""
        uid, count = need.uid, min(max(need.count, 0), DESCRIPTORS)
        sockets: list[socket.socket] = []
        try:
            sockets = self._needs.sockets(uid, need.family, count)
            numbers = tuple(FileDescriptor(made.fileno()) for made in sockets)
            worker.channel.send(SocketsMade(uid, need.family, numbers))
        except (KeyError, KernelError, OSError) as error:
            # the pod may be gone at any moment, and descriptors may be used up
            log.warning("no sockets for pod %s: %s", uid, error)
            worker.channel.send(SocketsMade(uid, need.family, ()))
        finally:
            for made in sockets:
                made.close()

    def _ping(self) -> None:
        self._loop.call_later(PING_SECONDS, self._ping)
        number = next(self._pings)
        for worker in list(self._slots.values()):
            worker.channel.send(Ping(number))
            if not self._answers(worker) and worker.pid:
                log.error(
                    "worker %d (pid %d) has not answered for %d s and is killed",
                    worker.slot,
                    worker.pid,
                    SILENT_SECONDS,
                )
                self._signal(worker, signal.SIGKILL)
        for worker in self._draining:
            worker.channel.send(Ping(number))

    async def ask(self, question: type[AskFlows] | type[AskMetrics], seconds: float = 1.0) -> list[Unchecked]:
        """Put a question to all workers and return the rows of their answers; one that is silent is left out."""
        number = next(self._pings)
        futures = []
        for worker in (*self._slots.values(), *self._draining):
            future: asyncio.Future[list[Unchecked]] = self._loop.create_future()
            worker.replies[number] = (future, [])
            futures.append(future)
            worker.channel.send(question(number))
        if not futures:
            return []
        done, _ = await asyncio.wait(futures, timeout=seconds)
        for worker in (*self._slots.values(), *self._draining):
            worker.replies.pop(number, None)
        return [item for future in done for item in future.result()]

    def _collect(self, worker: WorkerProcess, message: FlowRows) -> None:
        reply = worker.replies.get(message.number)
        if reply is None:
            return
        future, items = reply
        items.extend(message.flows[: MAX_FLOWS - len(items)])
        if not message.more and not future.done():
            future.set_result(items)

    def _fail_replies(self, worker: WorkerProcess) -> None:
        for future, items in worker.replies.values():
            if not future.done():
                future.set_result(items)

    # -- reload and stop --

    async def reload(self, drain_seconds: float) -> list[int]:
        """Replace every worker: the new one listens on the same listeners before the old one stops.
        Return the new pids.

        Raises ControlError when a new worker does not come up; the old ones then go on.
        """
        replaced = []
        for slot, old in list(self._slots.items()):
            with translated(ControlError, f"slot {slot}: no new worker can be started"):
                new = self._spawn(slot)
            if not await self._wait(functools.partial(getattr, new, "ready")):
                self._signal(new, signal.SIGKILL)
                self._slots[slot] = old
                self._draining.append(new)
                raise ControlError(
                    f"the new worker for slot {slot} did not come up within 10 s; the old one goes on, see the "
                    "daemon's log"
                )
            self._retire(old, drain_seconds)
            replaced.append(new.pid)
        return replaced

    def _retire(self, worker: WorkerProcess, drain_seconds: float) -> None:
        self._draining.append(worker)
        worker.channel.send(Drain(drain_seconds))

    async def finish(self, seconds: float) -> None:
        """Ask for the end of what is open now, while new connections are taken; return when it has
        ended, at the latest after *seconds*.
        """
        workers = list(self._slots.values())
        for worker in workers:
            worker.channel.send(Finish())
        await self._wait(lambda: all(worker.finished for worker in workers), seconds)

    async def stop(self, drain_seconds: float) -> None:
        """Drain all workers, also those that do so already, and wait for their end."""
        self._stopping = True
        for slot in list(self._slots):
            self._draining.append(self._slots.pop(slot))
        for worker in self._draining:
            worker.channel.send(Drain(drain_seconds))
        await self._wait(lambda: not self._draining, drain_seconds + 1)

    async def _wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        end = self._loop.time() + seconds
        while not condition():
            if self._loop.time() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    def _signal(self, worker: WorkerProcess, number: int) -> None:
        self._supervisor.send(Signal(worker.pid, int(number)))

    def entries(self) -> list[Entry]:
        """Return the snapshot as the workers have it."""
        return list(self._state.entries.values())


def parts(entries: Iterable[Entry], removals: Iterable[str], generation: int) -> Iterator[SnapshotPart]:
    """Split a change of the snapshot, which brings it to *generation*, into messages that fit a
    packet. Each but the last says that there is ``more``.
    """
    last: SnapshotPart | None = None
    for upserts, gone in _split(entries, removals):
        if last is not None:
            yield replace(last, more=True)
        last = SnapshotPart(upserts, gone, generation, more=False)
    yield last or SnapshotPart([], (), generation, more=False)


def _split(entries: Iterable[Entry], removals: Iterable[str]) -> Iterator[tuple[list[Unchecked], tuple[str, ...]]]:
    """Yield upserts and removals, as much of them as one packet carries."""
    gone = tuple(removals)
    for at in range(0, len(gone), REMOVALS_AT_ONCE):
        yield [], gone[at : at + REMOVALS_AT_ONCE]
    upserts: list[Unchecked] = []
    size = 0
    for entry in entries:
        value = to_json(entry)
        length = len(orjson.dumps(value))
        if upserts and size + length > MESSAGE_BYTES - _FRAME_BYTES:
            yield upserts, ()
            upserts = []
            size = 0
        upserts.append(value)
        size += length
    if upserts:
        yield upserts, ()
