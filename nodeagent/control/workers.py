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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, assert_never

from nodeagent.channel import DESCRIPTORS, Channel, pair
from nodeagent.control.concern import Snapshot
from nodeagent.control.snapshot_parts import encoded, parts_of
from nodeagent.control.snapshot_parts import parts as in_parts
from nodeagent.control.worker_process import KnownToWorkers, Needs, TellsSupervisor, WorkerProcess
from nodeagent.control.worker_questions import Questions
from nodeagent.errors import ControlError, KernelError, shown, translated
from nodeagent.heart import stat_of
from nodeagent.mesh.entries import Delta, Entry
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
    NeedSockets,
    NextOriginals,
    NodeAddresses,
    Ping,
    PodCaptured,
    PodReleased,
    Pong,
    Signal,
    SocketsMade,
    StartWorker,
    Succeeded,
    ToWorker,
)
from nodeagent.parts import Parts
from nodeagent.redirect.pod import ListenerId
from nodeagent.resources.objects import POD_UID
from nodeagent.steps import Steps, drained
from nodeagent.supervisor import SILENT_SECONDS
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, MessageError, Unchecked

PING_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 2.5
"""Between two pings while no worker has a connection: each wakes control twice, and the worker."""
ADOPTED_PER_SLOT: Final = 3
OVERDUE_SECONDS: Final = 10.0
"""After the end of its time a worker that drains has cut what is open, and ended, within this one."""
POLL_SECONDS: Final = 0.02
"""How often it is looked whether workers are where they should be."""
RESPAWN_LIMIT: Final = 20
"""Deaths within a minute after which a worker is restarted only once a second."""
log = logging.getLogger("nodeagent.control")


class Workers:
    """A concern: fills ``count`` slots, replaces what dies, and sends every change to all."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        count: int,
        supervisor: TellsSupervisor,
        needs: Needs,
        *,
        drain_seconds: float,
        stop_seconds: float,
        hand_over_seconds: float,
    ) -> None:
        """*drain_seconds*: how long a replaced worker's connections may go on; *stop_seconds*: those
        of all when control stops; *hand_over_seconds*: those of an earlier control's workers.
        """
        self._loop = loop
        self.count = count
        self._supervisor = supervisor
        self._needs = needs
        self._drain_seconds = drain_seconds
        self._stop_seconds = stop_seconds
        self._hand_over_seconds = hand_over_seconds
        self._state = KnownToWorkers()
        self._numbers = itertools.count(1)
        self._pings = itertools.count(1)
        self._questions = Questions()
        self._slots: dict[int, WorkerProcess] = {}
        self._starts: dict[int, StartWorker] = {}
        """What whoever fills a slot is told first, by slot."""
        self._node_addresses: tuple[str, ...] = ()
        self._draining: list[WorkerProcess] = []
        self._adopted: list[WorkerProcess] = []
        self._deaths: list[float] = []
        self._next_ping = 0.0
        self._pinging: asyncio.TimerHandle | None = None
        self._stopping = False
        self.generation = time.time_ns() // 1_000_000
        """Of the snapshot: counts its changes, from where no earlier control came, whose last
        acknowledgements may be on their way.
        """
        self._unsent: dict[str, str] = {}
        """Entries that cannot be sent, and why; workers keep what they had."""
        self.reloading: Callable[[], None] = _nothing
        """What a reload does first; where it raises NodeagentError, nothing else."""

    # -- as a concern --

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """End those of an earlier control when their successors are up; leaving drains all of them."""
        parts.start("what ends earlier workers", self._retire_adopted)
        yield
        await self.stop(self._stop_seconds)

    def changed(self, snapshot: Snapshot) -> None:
        """They were told by :meth:`apply`, when the snapshot was made."""

    def grown(self, snapshot: Snapshot) -> None:
        """They were told by :meth:`apply`."""

    def missing(self) -> list[str]:
        """Say that a slot has no worker that answers."""
        return [] if self.ready() else ["a worker is not up"]

    def untold(self) -> list[str]:
        """Say which entries cannot be told the workers."""
        return [f"{key} is not in the workers: {why}" for key, why in sorted(self._unsent.items())]

    def routes(self) -> Routes:
        """``nodeagent reload``."""
        return {("POST", "/reload"): self._reload_page}

    async def _reload_page(self, query: Mapping[str, str]) -> Response:
        return Response.json({"workers": await self.reload()})

    # -- slots --

    def fill(self, start: StartWorker) -> None:
        """Fill the slots; each worker is told *start* first, with its own slot and the node's
        addresses as they are then. Raises OSError where there is no room for a channel.
        """
        for slot in range(self.count):
            self._starts[slot] = replace(start, slot=slot)
            self._spawn(slot)
        now = self._loop.time()
        for worker in self._draining:
            worker.last_pong = now  # nobody has asked an adopted one until now
        self._ping_in(PING_SECONDS)

    def node(self, addresses: Sequence[str]) -> None:
        """The node's own addresses, from which probes come, are *addresses*."""
        if self._node_addresses != tuple(addresses):
            self._node_addresses = tuple(addresses)
            self._broadcast(NodeAddresses(self._node_addresses))

    def adopt(self, pid: int, end: socket.socket) -> None:
        """Take over a worker that an earlier control started, with that one's *end* of its channel.

        It gets what it needs and hears of every change, as one that drains, and drains itself when
        its successors are up.
        """
        worker = WorkerProcess(-1, next(self._numbers), pid)
        worker.last_pong = self._loop.time()
        self._connect(worker, end)
        self._draining.append(worker)
        self._adopted.append(worker)
        worker.channel.send(Succeeded())
        if self._state.entries:
            for part in in_parts(self._state.entries.values(), (), self.generation):
                self._tell(worker, part)

    async def _retire_adopted(self) -> None:
        """Workers of an earlier control served on; they drain as soon as their successors are up: for
        long, unless one control after the other has died, for each leaves some.
        """
        while not self.ready():
            await asyncio.sleep(POLL_SECONDS)
        few = len(self._adopted) <= ADOPTED_PER_SLOT * self.count
        for worker in self._adopted:
            self._drain(worker, self._hand_over_seconds if few else self._drain_seconds)
        self._adopted.clear()

    def ready(self) -> bool:
        """Say whether every slot is filled by a worker that answers."""
        return len(self._slots) == self.count and all(worker.ready for worker in self._slots.values())

    def _answers(self, worker: WorkerProcess) -> bool:
        return self._loop.time() - worker.last_pong < SILENT_SECONDS

    def _hangs(self, worker: WorkerProcess) -> bool:
        """Say whether *worker* is silent, and has a processor: what takes its place would get no more of one."""
        if not worker.pid or self._answers(worker):
            return False
        try:
            return not worker.progress.is_starved(stat_of(worker.pid))
        except OSError:
            return True

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
        if self._next_ping > worker.last_pong + PING_SECONDS:
            self._ping_in(PING_SECONDS)  # its first answer is waited for
        return worker

    def _connect(self, worker: WorkerProcess, end: socket.socket) -> None:
        worker.channel = Channel(
            self._loop,
            end,
            FROM_WORKER,
            heard=functools.partial(self._hear, worker),
            misunderstood=functools.partial(self._misunderstand, worker),
            closed=functools.partial(self._kill, worker),
        )

    def forked(self, number: int, pid: int) -> None:
        """The supervisor forked worker *number*."""
        for worker in (*self._slots.values(), *self._draining):
            if worker.number == number:
                worker.pid = pid
                if worker.killed:
                    self._kill(worker)

    def pids(self) -> list[int]:
        """Return the process ids of all workers, of those too that drain."""
        return [worker.pid for worker in (*self._slots.values(), *self._draining) if worker.pid]

    def exited(self, pid: int, status: int) -> None:
        """A worker is gone: its slot is filled again at once, unless it was told to go."""
        for worker in list(self._draining):
            if worker.pid == pid:
                self._draining.remove(worker)
                worker.channel.hear_out()
        for slot, worker in list(self._slots.items()):
            if worker.pid != pid:
                continue
            worker.channel.hear_out()
            del self._slots[slot]
            self._questions.gone(worker)
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
        self._tell(worker, replace(self._starts[worker.slot], node_addresses=self._node_addresses))
        for message in self._state.messages(worker.slot, self.generation):
            self._tell(worker, message)
        self._tell(worker, Ping(0))

    def apply(self, delta: Delta) -> None:
        """Send the changed entries of the snapshot, as its next generation."""
        drained(self.steps(delta))

    def steps(self, delta: Delta) -> Steps[None]:
        """Do the same step by step, one entry each. Nothing is told, nor in the snapshot, before the last one."""
        upserts: list[Entry] = []
        contents: list[bytes] = []
        for entry in delta.upserts:
            content = self._encoded(entry)
            if content:
                upserts.append(entry)
                contents.append(content)
            yield
        if not upserts and not delta.removals:
            return
        self.generation += 1
        for key in delta.removals:
            self._state.entries.pop(key, None)
        for entry in upserts:
            self._state.entries[entry.key] = entry
        for part in parts_of(contents, delta.removals, self.generation):
            self._broadcast(part)

    def _encoded(self, entry: Entry) -> bytes:
        """Return *entry* as it is sent; empty: it cannot be, and takes no other along."""
        try:
            content = encoded(entry)
        except TypeError as error:
            if self._unsent.get(entry.key) != str(error):
                self._unsent[entry.key] = str(error)
                log.error("%s cannot be sent to the workers: %s", entry.key, error)
            return b""
        self._unsent.pop(entry.key, None)
        return content

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
            for message in self._state.about(pod, worker.slot):
                self._tell(worker, message)

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

    def _misunderstand(self, worker: WorkerProcess, error: MessageError) -> None:
        """A pod may have taken the worker over: what it says from now on is worth nothing."""
        log.error("worker %d (pid %d) says what no worker says (%s) and is killed", worker.slot, worker.pid, error)
        self._kill(worker)

    def _hear(self, worker: WorkerProcess, message: FromWorker) -> None:
        match message:
            case NeedSockets():
                self._hand_sockets(worker, message)
            case Pong():
                worker.last_pong = self._loop.time()
                worker.progress.heard()
                worker.ready = True
                worker.connections = message.connections
            case GenerationInForce():
                worker.generation = max(worker.generation, min(message.generation, self.generation))
            case Finished():
                worker.finished = True
            case Counted():
                self._needs.metrics(message.report)
            case FlowRows():
                self._questions.answered(worker, message)
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
        uid = need.uid
        if not POD_UID.fullmatch(uid):
            self._misunderstand(worker, MessageError(f"NeedSockets: no pod has the uid {shown(uid)}"))
            return
        count = min(max(need.count, 0), DESCRIPTORS)
        sockets: list[socket.socket] = []
        try:
            sockets = self._needs.sockets(uid, need.family, count)
            numbers = tuple(FileDescriptor(made.fileno()) for made in sockets)
            worker.channel.send(SocketsMade(uid, need.family, numbers))
        except (KeyError, KernelError, OSError) as error:
            # the pod may be gone at any moment, and descriptors may be used up
            log.warning("no sockets for pod %s: %s", shown(uid), error)
            worker.channel.send(SocketsMade(uid, need.family, ()))
        finally:
            for made in sockets:
                made.close()

    def next_originals(self, originals: int) -> None:
        """Tell all workers that serve pods of the map in which another daemon's programs remember whom
        connections asked for.
        """
        for worker in (*self._slots.values(), *self._adopted):
            self._tell(worker, NextOriginals(FileDescriptor(originals)))

    def _is_quiet(self) -> bool:
        """Say whether all workers are up, and had no connection when they answered last."""
        return self.ready() and not self._draining and not any(each.connections for each in self._slots.values())

    def _ping_in(self, seconds: float) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
        self._next_ping = self._loop.time() + seconds
        self._pinging = self._loop.call_at(self._next_ping, self._ping)

    def _ping(self) -> None:
        """Ask all whether they live. For as long as control itself did not turn nobody is to blame: what
        they answered waits unread.
        """
        now = self._loop.time()
        late = now - self._next_ping
        self._ping_in(QUIET_SECONDS if self._is_quiet() else PING_SECONDS)
        for worker in (*self._slots.values(), *self._draining):
            worker.last_pong = min(worker.last_pong + late, now)
        number = next(self._pings)
        for worker in list(self._slots.values()):
            worker.channel.send(Ping(number))
            if self._hangs(worker):
                log.error(
                    "worker %d (pid %d) has not answered for %d s and is killed",
                    worker.slot,
                    worker.pid,
                    SILENT_SECONDS,
                )
                self._signal(worker, signal.SIGKILL)
        for worker in self._draining:
            worker.channel.send(Ping(number))
            if not worker.killed and (self._hangs(worker) or now > worker.ends_by):
                what = "answered" if now <= worker.ends_by else "ended"
                log.error("a draining worker (pid %d) has not %s in time and is killed", worker.pid, what)
                self._kill(worker)

    async def ask(self, question: type[AskFlows] | type[AskMetrics]) -> list[Unchecked]:
        """Put a question to all workers and return the rows of their answers; one that is silent is left out."""
        return await self._questions.ask(question, (*self._slots.values(), *self._draining))

    # -- reload and stop --

    async def reload(self) -> list[int]:
        """Replace every worker: the new one listens on the same listeners before the old one stops,
        so that no connection is lost. Return the new pids.

        Raises ControlError when a new worker does not come up; the old ones then go on. Raises NodeagentError when
        agent.yaml is wrong; nothing is replaced then.
        """
        if self._stopping:
            raise ControlError("the agent stops, or another one has taken over: no worker is replaced any more")
        self.reloading()
        replaced = []
        for slot in self._starts:
            old = self._slots.get(slot)
            pods = dict(self._state.pods)
            with translated(ControlError, f"slot {slot}: no new worker can be started"):
                self._spawn(slot)
            if old is not None:
                self._draining.append(old)  # serves on and hears of every change, until it is told to go
            if not await self._wait(functools.partial(self._up_or_over, slot)):
                self._put_back(slot, old, pods)
                raise ControlError(
                    f"the new worker for slot {slot} did not come up within 10 s; the old one goes on where it still "
                    "lives, see the daemon's log"
                )
            if self._stopping:
                raise ControlError("the agent stops: no worker is replaced any more")
            if old is not None:
                self._drain(old, self._drain_seconds)
            replaced.append(self._slots[slot].pid)
        log.info("workers replaced: %s", replaced)
        return replaced

    def _up_or_over(self, slot: int) -> bool:
        """Say whether *slot* is filled by a worker that answers, the new one or what replaced that,
        or needs none any more.
        """
        worker = self._slots.get(slot)
        return self._stopping or (worker is not None and worker.ready)

    def _put_back(self, slot: int, old: WorkerProcess | None, pods: Mapping[str, PodCaptured]) -> None:
        """Fill *slot* again with *old*, if that still lives; it knows *pods*, and hears of later ones."""
        if old is None or old not in self._draining:
            return
        failed = self._slots.get(slot)
        if failed is not None:
            self._draining.append(failed)
            self._kill(failed)
        self._draining.remove(old)
        self._slots[slot] = old
        for uid, pod in self._state.pods.items():
            if pods.get(uid) is not pod:
                for message in self._state.about(pod, slot):
                    self._tell(old, message)

    async def finish(self) -> None:
        """Ask for the end of what is open now, while new connections are taken; return when it has
        ended, at the latest after the half of a stop that is for this.
        """
        workers = list(self._slots.values())
        for worker in workers:
            worker.channel.send(Finish())
        await self._wait(lambda: all(worker.finished for worker in workers), self._stop_seconds)

    async def step_down(self, drain_seconds: float, hastened: Callable[[], Awaitable[None]]) -> None:
        """Drain all workers, whose successors serve already, and wait for their end; when *hastened*
        returns they have as long as in a stop.
        """
        self.drain(drain_seconds)
        hurry = asyncio.ensure_future(hastened())
        while self._draining:
            if hurry.done():
                await self.stop(self._stop_seconds)
                return
            await asyncio.wait((hurry,), timeout=PING_SECONDS)
        hurry.cancel()

    def drain(self, seconds: float) -> None:
        """Have no worker take a connection any more."""
        self._stopping = True
        for slot in list(self._slots):
            self._draining.append(self._slots.pop(slot))
        for worker in self._draining:
            self._drain(worker, seconds)

    def _drain(self, worker: WorkerProcess, seconds: float) -> None:
        """Have *worker* take nothing more, and end within *seconds*; one that does not is killed, soon after."""
        worker.channel.send(Drain(seconds))
        worker.ends_by = min(worker.ends_by, self._loop.time() + seconds + OVERDUE_SECONDS)

    async def stop(self, drain_seconds: float) -> None:
        """Drain all workers, also those that do so already, and wait for their end."""
        self.drain(drain_seconds)
        await self._wait(lambda: not self._draining, drain_seconds + 1)

    async def _wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        end = self._loop.time() + seconds
        while not condition():
            if self._loop.time() > end:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _signal(self, worker: WorkerProcess, number: int) -> None:
        self._supervisor.send(Signal(worker.pid, int(number)))

    def snapshot(self) -> Mapping[str, Entry]:
        """Return the snapshot as the workers have it, by key: as it changes, not as it was."""
        return self._state.entries


def _nothing() -> None:
    """A reload is of workers alone."""
