"""The first process: forks control and the proxy workers, keeps what must outlive control, and
beats for the data plane.

It stays small on purpose. It is forked from before any thread or event loop exists, so that a child
starts clean and shares the imported code's memory; and it parses nothing from outside. Nothing that
pods or peers can load runs here.

The heartbeat says that the data plane works: some worker's loop turned lately. Control may be busy,
stopped or dead meanwhile; so the supervisor never waits for it: what it is to be told is queued,
and a successor that must wait a moment is an alarm in the one poll().
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from nodeagent.channel import DESCRIPTORS, MESSAGE_BYTES, Outbox, pair
from nodeagent.config import AgentConfig
from nodeagent.pulse import Pulse, Pulses
from nodeagent.redirect import heartbeat

RESPAWN_SECONDS: Final = 1.0
"""A control that died within this time is replaced no sooner: a daemon whose control dies at every
start does not spin.
"""
SILENT_SECONDS: Final = 10.0
"""While no worker's loop has turned for this long, the data plane does not work."""
CONTROL_SILENT_SECONDS: Final = 30.0
"""A control whose loop turned once, and has not for this long, is killed and succeeded: without
one, sockets inside pods run out.
"""
PATIENCE_SECONDS: Final = 10.0
"""What has not ended this long after it should have is killed."""
_UNFELT_SECONDS: Final = 0.02
"""How often a worker's first turn is looked for."""
_PR_SET_PDEATHSIG: Final = 1
log = logging.getLogger("nodeagent.supervisor")
ControlMain = Callable[[AgentConfig, socket.socket, Pulse], None]
WorkerMain = Callable[[socket.socket, Pulse], None]


@dataclass(frozen=True, slots=True)
class _Worker:
    pulse: Pulse
    end: int
    """Control's end of its channel: a control that dies leaves it to its successor."""


class Supervisor:
    """Children by pid, and descriptors by key: a pod's listeners (``uid/direction/family/slot``)
    and network namespace (``uid/netns``), and an identity's certificate in memory
    (``identity/certificate``), which is never read here.
    """

    def __init__(
        self, config: AgentConfig, control: ControlMain, worker: WorkerMain, own: Sequence[int], stop_seconds: float
    ) -> None:
        """*own*: descriptors that no child may have. *stop_seconds*: how long a stop takes."""
        self._config, self._control_main, self._worker_main, self._own = config, control, worker, own
        self._patience = stop_seconds + PATIENCE_SECONDS
        self._control_pid = 0
        self._control_started = 0.0
        self._start_at = 0.0
        self._workers: dict[int, _Worker] = {}
        self._unforked: list[tuple[int, int, int]] = []
        self._fork_at = 0.0
        self._kept: dict[str, int] = {}
        self._channel: socket.socket
        self._outbox: Outbox
        self._pulses, self._controls = Pulses(), Pulses()
        self._control_pulse = self._controls.claim()
        self._heart = -1
        self._beat_seconds = 0.0
        self._next_beat = 0.0
        self._beating = False
        self._stopping = False
        self._kill_at = 0.0
        self._status = 0
        self._signals: set[int] = set()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until told to stop and every child is gone; return control's exit status."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        self._start_control()
        while self._control_pid or self._workers or self._start_at:
            self._wait()
            self._heed_signals()
            self._bury(dict(self._reap()))
            self._keep_time()
        return self._status

    def _wait(self) -> None:
        """Wait for a child, a signal, control or an alarm, whichever comes first. poll() and not
        select(): descriptors are many.
        """
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._control_pid:
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        alarms = [alarm for alarm in (self._start_at, self._fork_at, self._next_beat, self._kill_at) if alarm]
        wait = max(0.0, min(alarms) - time.monotonic()) * 1000 + 1 if alarms else None
        for descriptor, event in poll.poll(wait):
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
                continue
            if event & select.POLLOUT:
                self._outbox.flush()
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read_control()

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._start_at and now >= self._start_at:
            self._start_control()
        if self._heart >= 0 and now >= self._next_beat:
            self._beat(now)
            self._look_after_control()
        if self._fork_at and now >= self._fork_at:
            self._fork_workers()
        if self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            _say(f"what has not ended {self._patience:g} s after the daemon was told to stop is killed")
            for pid in (*self._workers, *([self._control_pid] if self._control_pid else [])):
                os.kill(pid, signal.SIGKILL)

    # -- the heartbeat --

    def _beat(self, now: float) -> None:
        felt = self._pulses.felt(SILENT_SECONDS)
        self._next_beat = now + (self._beat_seconds if felt else _UNFELT_SECONDS)
        if felt:
            try:
                heartbeat.beat(self._heart)
            except OSError as error:
                _say(f"the heartbeat cannot be written: {error.strerror}")
        if felt != self._beating:
            self._beating = felt
            self._tell({"op": "beats", "felt": felt})

    def _end_heartbeat(self) -> None:
        if self._heart >= 0:
            heartbeat.end(self._heart)
            os.close(self._heart)
        self._heart, self._next_beat, self._beating = -1, 0.0, False

    # -- children --

    def _start_control(self) -> None:
        ours, theirs = pair()
        self._channel, self._outbox, self._start_at = ours, Outbox(ours), 0.0
        self._control_started = time.monotonic()
        try:
            self._control_pulse.rest()
            self._control_pid = self._fork(
                lambda: self._control_main(self._config, theirs, self._control_pulse), keep={theirs.fileno()}
            )
        except OSError as error:
            _say(f"control cannot be forked: {error.strerror}")
            ours.close()
            self._start_at = self._control_started + RESPAWN_SECONDS
            return
        finally:
            theirs.close()
        keys = list(self._kept)
        for some in (keys[at : at + DESCRIPTORS] for at in range(0, len(keys), DESCRIPTORS)):
            self._tell({"op": "kept", "keys": some}, [self._kept[key] for key in some])
        for pid, worker in self._workers.items():
            self._tell({"op": "orphan", "pid": pid}, [worker.end])
        self._beating = False
        self._tell({"op": "begin"})

    def _bury(self, dead: dict[int, int]) -> None:
        """Take in who is *dead*, with what status: workers first, for no pid that is free again may be signalled."""
        for pid in dead.keys() & self._workers.keys():
            self._worker_died(pid, dead[pid])
        if self._control_pid in dead:
            self._control_died(dead[self._control_pid])

    def _control_died(self, code: int) -> None:
        self._control_pid = 0
        while self._read_control():
            """Its last words count."""
        self._channel.close()
        self._outbox.close()
        self._forget_unforked()
        if self._stopping or code == 0:
            self._status = code
            self._end_data_plane()
        elif self._heart < 0:
            self._status = code  # none ever came up: say so and stop, the node's supervisor will try again
            self._end_data_plane()
        else:
            _say(f"control died (status {code}); it is started again, workers go on")
            self._start_at = max(time.monotonic(), self._control_started + RESPAWN_SECONDS)

    def _look_after_control(self) -> None:
        if (
            self._control_pid
            and not self._stopping
            and self._control_pulse.begun()
            and not self._controls.felt(CONTROL_SILENT_SECONDS)
        ):
            self._control_pulse.rest()
            _say(f"control's event loop has not turned for {CONTROL_SILENT_SECONDS:g} s; it is killed")
            os.kill(self._control_pid, signal.SIGKILL)

    def _worker_died(self, pid: int, code: int) -> None:
        worker = self._workers.pop(pid)
        self._pulses.free(worker.pulse)
        os.close(worker.end)
        self._tell({"op": "exited", "pid": pid, "status": code})

    def _stop(self) -> None:
        """Nothing is started any more, and what does not end in time is killed."""
        if not self._stopping:
            self._stopping, self._kill_at = True, time.monotonic() + self._patience
        self._start_at = self._fork_at = 0.0

    def _end_data_plane(self) -> None:
        self._stop()
        self._end_heartbeat()
        for pid in self._workers:
            os.kill(pid, signal.SIGUSR1)

    def _fork_workers(self) -> None:
        """Fork the workers that control asked for; what the machine has no room for is tried again."""
        self._fork_at = 0.0
        while self._unforked:
            number, theirs, controls = self._unforked[0]
            end, pulse = socket.socket(fileno=os.dup(theirs)), self._pulses.claim()
            try:
                pid = self._fork(lambda end=end, pulse=pulse: self._worker_main(end, pulse), keep={end.fileno()})  # type: ignore[misc]
            except OSError as error:
                _say(f"a worker cannot be forked: {error.strerror}")
                self._pulses.free(pulse)
                self._fork_at = time.monotonic() + RESPAWN_SECONDS
                return
            finally:
                end.close()
            del self._unforked[0]
            os.close(theirs)
            self._workers[pid] = _Worker(pulse, controls)
            self._tell({"op": "forked", "number": number, "pid": pid})

    def _forget_unforked(self) -> None:
        """What a control that is gone asked for, its successor asks for anew, by numbers of its own."""
        for _, *ends in self._unforked:
            for end in ends:
                os.close(end)
        self._unforked.clear()
        self._fork_at = 0.0

    def _fork(self, child: Callable[[], None], keep: set[int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            self._close_inherited(keep)
            child()
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException:  # noqa: BLE001 - the process's last frame: whatever it was must be told, then the process ends
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _close_inherited(self, keep: set[int]) -> None:
        """Close what is the supervisor's alone: above all, no worker may have control's end of another's channel."""
        ends = [worker.end for worker in self._workers.values()] + [end for _, *both in self._unforked for end in both]
        heart = [self._heart] if self._heart >= 0 else []
        channel = [self._channel.detach()] if self._channel.fileno() >= 0 else []
        for descriptor in (
            self._wake_read,
            self._wake_write,
            *channel,
            *self._own,
            *self._kept.values(),
            *ends,
            *heart,
        ):
            if descriptor not in keep:
                os.close(descriptor)
        self._outbox.close()
        self._kept.clear()
        self._workers.clear()
        self._unforked.clear()

    def _reap(self) -> list[tuple[int, int]]:
        reaped: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return reaped
            if pid == 0:
                return reaped
            reaped.append((pid, os.waitstatus_to_exitcode(status)))

    # -- control's messages --

    def _read_control(self) -> bool:
        """Obey a message; return whether there may be more."""
        try:
            payload, descriptors, _, _ = socket.recv_fds(self._channel, 2 * MESSAGE_BYTES, DESCRIPTORS)
        except ConnectionResetError:
            # told once of an end that had not read everything (net/unix/af_unix.c); what it sent
            # before follows
            return True
        except OSError:
            return False
        if not payload:
            return False
        owned = set(descriptors)
        try:
            self._obey(orjson.loads(payload), descriptors, owned)
        except (ValueError, KeyError, TypeError, OSError) as error:
            _say(f"a message of control's cannot be obeyed: {error!r:.200}")
        for descriptor in owned:
            os.close(descriptor)
        return True

    def _obey(self, message: dict[str, Any], descriptors: list[int], owned: set[int]) -> None:
        """Carry *message* out; what is kept of its *descriptors* leaves *owned*. Raises ValueError,
        KeyError, TypeError or OSError.
        """
        operation = message["op"]
        if operation == "fork" and self._control_pid:
            theirs, controls = descriptors
            self._unforked.append((int(message["number"]), theirs, controls))
            owned -= {theirs, controls}
            self._fork_workers()
        elif operation == "keep":
            for key, descriptor in zip(message["keys"], descriptors, strict=True):
                self._drop(key)
                self._kept[key] = descriptor
                owned.discard(descriptor)
        elif operation == "drop":
            for key in [key for key in self._kept if key.startswith(f"{message['uid']}/")]:
                self._drop(key)
        elif operation == "heart":
            (descriptor,) = descriptors
            seconds = float(message["timeout"]) / heartbeat.PER_TIMEOUT
            if self._heart >= 0:
                os.close(self._heart)
            owned.discard(descriptor)
            self._heart, self._beat_seconds, self._next_beat = descriptor, seconds, time.monotonic()
        elif operation == "still":
            self._end_heartbeat()
            self._tell({"op": "stilled"})
        elif operation == "signal" and message["pid"] in self._workers:
            os.kill(message["pid"], message["signal"])

    def _drop(self, key: str) -> None:
        descriptor = self._kept.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def _tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if self._control_pid:
            self._outbox.send(message, descriptors)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.add(number)

    def _heed_signals(self) -> None:
        signals, self._signals = self._signals, set()
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
            if self._control_pid:
                os.kill(self._control_pid, signal.SIGTERM)
            else:
                self._end_data_plane()
        if signal.SIGHUP in signals and self._control_pid:
            os.kill(self._control_pid, signal.SIGHUP)


def _say(words: str) -> None:
    """Log *words*, unless whoever reads the log does not: a line that waits would end the heartbeat."""
    if select.select([], [sys.stderr], [], 0)[1]:
        log.error(words)


def main(
    config: AgentConfig, control: ControlMain, worker: WorkerMain, own: Sequence[int] = (), stop_seconds: float = 0.0
) -> int:
    """Run the daemon's processes for *config*; return the exit status.

    *own*: descriptors that only the supervisor keeps, such as its locks. *stop_seconds*: how long a
    stop takes.
    """
    gc.collect()
    gc.freeze()
    return Supervisor(config, control, worker, own, stop_seconds).run()
