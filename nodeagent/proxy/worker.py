"""A proxy worker: one event loop that carries the pods' traffic.

It has no privilege (a user of its own, no capability): listeners, sockets inside pods, certificates and the
cluster's view come from control over a channel. It never reads YAML, never enters a namespace, and
dies alone.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from typing import Final, assert_never

import uvloop

from nodeagent.channel import Channel
from nodeagent.memory import settle
from nodeagent.mesh.entries import Delta
from nodeagent.mesh.entry_json import from_json
from nodeagent.messages import (
    TO_WORKER,
    AboutPod,
    AskFlows,
    AskMetrics,
    CertificateIssued,
    Drain,
    Finish,
    Finished,
    FlowRows,
    FromWorker,
    GenerationInForce,
    Listen,
    NextOriginals,
    NodeAddresses,
    Ping,
    PodCaptured,
    PodReleased,
    Pong,
    SnapshotPart,
    SocketsMade,
    StartWorker,
    Succeeded,
    ToWorker,
)
from nodeagent.policy.model import AuthorizationPolicy
from nodeagent.proxy import privilege
from nodeagent.proxy.pace import Pace
from nodeagent.proxy.proxy import Proxy
from nodeagent.proxy.serving import Serving
from nodeagent.pulse import Pulse
from nodeagent.wire import MessageError

SWEEP_SECONDS: Final = 0.25
REST_SECONDS: Final = 1.0
"""Between two sweeps while no connection is open: waking up is most of what an idle worker costs."""
log = logging.getLogger("nodeagent.worker")


def main(end: socket.socket, pulse: Pulse) -> None:
    """Run a worker on its end of the channel until control drains it; *pulse* is where it says that
    its loop turns. The process's last call.
    """
    settle()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_serve(end, pulse))


async def _serve(end: socket.socket, pulse: Pulse) -> None:
    worker = Worker(asyncio.get_running_loop(), end, pulse)
    await worker.done
    worker.close()


class Worker:
    """Carries out control's messages; see ``nodeagent.control.workers`` for the other side."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: socket.socket, pulse: Pulse) -> None:
        self.loop = loop
        self._pulse = pulse
        self.done: asyncio.Future[None] = loop.create_future()
        self._serving: Serving | None = None
        """None: control has not said yet how to serve."""
        self._drain_until = 0.0
        self._finishing: set[int] | None = None
        """Connections that were open when all were asked to end; None: none was."""
        self._leaving = False
        """All have ended, or their time is over."""
        self._lag = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._learning = False
        self._held: collections.deque[ToWorker] = collections.deque()
        self._settling = asyncio.Lock()
        """Held while open connections are looked at again, which a later generation's acknowledgement waits for."""
        self._deltas: list[Delta] = []
        """Of a change whose last part is not there yet."""
        self._missed = False
        """An entry could not be taken in: control is not told that the change which brought it, or
        a later one, is in force.
        """
        self._channel: Channel[ToWorker, FromWorker] = Channel(
            loop, end, TO_WORKER, heard=self._message, misunderstood=self._misunderstand, closed=self._orphaned
        )
        loop.add_signal_handler(signal.SIGUSR1, self._told_to_go)
        # the supervisor's to handle, also where a whole group is sent them (Ctrl-C, a closed terminal, systemd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        self._next_sweep = loop.time() + SWEEP_SECONDS
        self._sweeping = loop.call_at(self._next_sweep, self._sweep)
        self._resting = False
        """The next sweep is later than it would be with connections."""

    def close(self) -> None:
        """Flush what is left before the process ends."""
        if self._serving is not None:
            self._serving.close()

    # -- control's messages --

    def _message(self, message: ToWorker) -> None:
        """Carry *message* out, in its turn: what follows a change of the snapshot may rest on it, and waits."""
        if self._learning:
            self._held.append(message)
        elif isinstance(message, SnapshotPart):
            self._learning = True
            self._start(self._learn(message))
        else:
            self._obey(message)

    def _misunderstand(self, error: MessageError) -> None:
        """A worker that served on would do so by half of a change: it ends its channel, by which
        control, or its successor, kills and replaces it.
        """
        log.error("control says what no control says (%s); this worker is to be replaced", error)
        self._channel.close()

    def _obey(self, message: ToWorker) -> None:
        match message:
            case StartWorker():
                self._on_start(message)
            case SnapshotPart():
                raise AssertionError("a change of the snapshot is learned, not obeyed")
            case CertificateIssued():
                self._served().certificate(message)
            case PodCaptured() | Listen() | PodReleased() | SocketsMade():
                self._obey_about_pod(message)
            case NodeAddresses():
                self._proxy().node_is(message.addresses)
            case NextOriginals():
                self._served().next_originals(message)
            case Succeeded():
                self._on_succeeded()
            case Ping():
                self._on_ping(message)
            case AskFlows() | AskMetrics():
                self._on_question(message)
            case Finish():
                self._on_finish()
            case Drain():
                self._drain(message.seconds)
            case _:
                assert_never(message)

    def _obey_about_pod(self, message: AboutPod) -> None:
        match message:
            case PodCaptured():
                self._served().captured(message)
            case Listen():
                opening = self._served().listen(message)
                if opening is not None:
                    self._start(opening)
            case PodReleased():
                self._served().released(message)
            case SocketsMade():
                self._served().sockets(message)
            case _:
                assert_never(message)

    def _on_start(self, message: StartWorker) -> None:
        try:
            self._serving = Serving.of(message, self.loop, self._channel.send)
            self._proxy().context.stir = self._stir
            privilege.drop(message.supervisor, self._proxy().context.settings.user)
        except Exception as error:  # noqa: BLE001 - as said below
            # Whatever it was: a worker that could not give up its privileges must not carry a byte.
            log.critical("this worker cannot start: %s", error)
            os._exit(1)

    async def _learn(self, message: SnapshotPart) -> None:
        """Take a change of the snapshot in: decoded and compiled in slices, in force at once, when
        its last part is there.
        """
        try:
            self._deltas.append(await self._decoded(message))
            while (part := self._held_part()) is not None:
                message = part
                self._deltas.append(await self._decoded(message))
            if not message.more:
                deltas = self._deltas
                self._deltas = []
                self._start(self._acknowledge(message.generation, self._proxy().put(deltas)))
        finally:
            self._catch_up()

    def _held_part(self) -> SnapshotPart | None:
        """Take the next message that waits, if it is a part of a change of the snapshot."""
        first = self._held[0] if self._held else None
        if not isinstance(first, SnapshotPart):
            return None
        self._held.popleft()
        return first

    def _catch_up(self) -> None:
        """Carry out what waited, up to the next change of the snapshot."""
        while self._held:
            if (part := self._held_part()) is not None:
                self._start(self._learn(part))
                return
            message = self._held.popleft()
            try:
                self._obey(message)
            except Exception as error:  # as the event loop would have it: the next message is not to blame
                log.error("control's message %s failed: %s", type(message).__name__, error, exc_info=error)
        self._learning = False

    async def _decoded(self, message: SnapshotPart) -> Delta:
        pace = Pace()
        upserts = []
        for value in message.upserts:
            try:
                entry = from_json(value)
                if isinstance(entry, AuthorizationPolicy):
                    self._proxy().guards.compiler.compiled(entry)
                upserts.append(entry)
            except Exception as error:  # whatever it is, no other entry is to blame
                self._missed = True
                log.error("an entry of the snapshot cannot be taken in: %s", error, exc_info=error)
            await pace.keep()
        return Delta(tuple(upserts), message.removals)

    async def _acknowledge(self, generation: int, protection_changed: bool) -> None:
        """Tell control that *generation* of the snapshot is in force, when open connections have
        been looked at, too, and those before it.
        """
        async with self._settling:
            if protection_changed and self._proxy().context.connections:
                await self._proxy().revocation.reconsider()
            if not self._missed:
                self._channel.send(GenerationInForce(generation))

    def _on_succeeded(self) -> None:
        """Another control is at the other end: the one before may have died before it gave what it
        was asked for, and within a change.
        """
        self._deltas.clear()
        if self._serving is not None:
            self._serving.ask_again()

    def _on_ping(self, message: Ping) -> None:
        self._beat()
        self._report()
        self._channel.send(Pong(message.number, len(self._proxy().context.connections)))

    def _on_question(self, message: AskFlows | AskMetrics) -> None:
        """Answer with what was counted, and where flows are asked for with live and recent
        connections, in parts that fit a packet: these may be very many.
        """
        self._report()
        if isinstance(message, AskFlows):
            self._start(self._served().tell_flows(message.number))
        else:
            self._channel.send(FlowRows(message.number, [], more=False))

    def _on_finish(self) -> None:
        """Ask for the end of what is open; what comes is still served."""
        self._finishing = set(self._proxy().context.connections)
        self._stir()
        self._proxy().revocation.drain()
        self._sweep_finishing()

    # -- life --

    def _orphaned(self) -> None:
        """The supervisor, which keeps the other end while control is replaced, is gone too: the
        kernel kills this process.
        """
        log.warning("nobody tells this worker anything any more")

    def _told_to_go(self) -> None:
        """The daemon ends, and control is not there to say so."""
        self._drain(self._proxy().context.timeouts.stop if self._serving is not None else 0.0)

    def _drain(self, seconds: float) -> None:
        until = self.loop.time() + seconds
        if self._drain_until:
            self._drain_until = min(self._drain_until, until)
            return
        self._drain_until = until
        self._stir()
        self._pulse.rest()
        if self._serving is not None:
            self._serving.stop_listening()
            self._serving.proxy.revocation.drain()
        self._sweep_drain()

    def _sweep(self) -> None:
        now = self.loop.time()
        self._lag = max(self._lag, now - self._next_sweep)
        self._sweep_next(now)
        self._beat()
        if self._serving is not None:
            self._serving.proxy.revocation.sweep()
        if self._finishing is not None:
            self._sweep_finishing()
        if self._drain_until:
            self._sweep_drain()

    def _sweep_next(self, now: float) -> None:
        ending = self._finishing is not None or self._drain_until
        self._resting = self._serving is not None and not ending and not self._proxy().context.connections
        self._next_sweep = now + (REST_SECONDS if self._resting else SWEEP_SECONDS)
        self._sweeping = self.loop.call_at(self._next_sweep, self._sweep)

    def _stir(self) -> None:
        """There is something again for which the clock must be right, and sweeps be frequent."""
        if self._resting:
            self._sweeping.cancel()
            self._proxy().context.tick()
            self._sweep_next(self.loop.time())

    def _beat(self) -> None:
        """The loop turns; that counts while this worker takes connections."""
        if self._serving is not None and not self._drain_until:
            self._pulse.turn()

    def _sweep_finishing(self) -> None:
        if not self._finishing or self._finishing.isdisjoint(self._proxy().context.connections):
            self._channel.send(Finished())

    def _sweep_drain(self) -> None:
        """End when all connections have, but for those that had their time before."""
        idle = self._serving is None or self._proxy().context.connections.keys() <= (self._finishing or set())
        if (idle or self.loop.time() >= self._drain_until) and not self._leaving:
            self._leaving = True
            if not idle and self._serving is not None:
                self._serving.cut()
            self._report()
            self.loop.call_later(0.05, self._end)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _report(self) -> None:
        if self._serving is not None:
            self._serving.report(self._lag)
            self._lag = 0.0

    def _served(self) -> Serving:
        """Return what this worker serves. Raises RuntimeError while control has not said how to."""
        if self._serving is None:
            raise RuntimeError("control asks for something before it said how to serve (StartWorker)")
        return self._serving

    def _proxy(self) -> Proxy:
        return self._served().proxy

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of this worker failed: %s", task.exception(), exc_info=task.exception())
