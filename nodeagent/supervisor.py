"""The first process: forks control and the proxy workers, keeps the pods' listeners across a death of control.

It stays small on purpose. It is forked from before any thread or event loop exists, so that a child starts clean and
shares the imported code's memory; and it parses nothing from outside.
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
from typing import Any, Final

import orjson

from nodeagent.channel import DESCRIPTORS, MESSAGE_BYTES, pair
from nodeagent.config import AgentConfig

RESPAWN_SECONDS: Final = 1.0
"""A control that died within this time waits as long: a daemon whose control dies at every start does not spin."""
_PR_SET_PDEATHSIG: Final = 1
log = logging.getLogger("nodeagent.supervisor")


class Supervisor:
    """Children by pid, and listeners by (pod, direction, family, slot)."""

    def __init__(
        self, config: AgentConfig, control: Callable[[AgentConfig, socket.socket], None], worker: Callable[[socket.socket], None], own: Sequence[int] = ()
    ) -> None:
        """*own*: descriptors that no child may have."""
        self._config, self._control_main, self._worker_main, self._own = config, control, worker, own
        self._control_pid = 0
        self._control_started = 0.0
        self._workers: set[int] = set()
        self._kept: dict[str, int] = {}
        self._channel: socket.socket
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until told to stop and every child is gone; return control's exit status."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        status = 0
        self._start_control()
        while self._control_pid or self._workers:
            readers: list[Any] = [self._wake_read, *([self._channel] if self._control_pid else [])]
            ready, _, _ = select.select(readers, [], [])
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._control_pid and self._channel in ready:
                self._read_control()
            for pid, code in self._reap():
                if pid == self._control_pid:
                    status = self._control_died(code)
                else:
                    self._workers.discard(pid)
                    self._tell({"op": "exited", "pid": pid, "status": code})
        return status

    # -- children --

    def _start_control(self) -> None:
        ours, theirs = pair()
        ours.setblocking(True)
        self._channel = ours
        self._control_started = time.monotonic()
        self._control_pid = self._fork(lambda: self._control_main(self._config, theirs), keep={theirs.fileno()})
        theirs.close()
        for key, descriptor in self._kept.items():
            self._tell({"op": "kept", "key": key}, [descriptor])
        self._tell({"op": "begin", "orphans": sorted(self._workers)})

    def _control_died(self, code: int) -> int:
        self._control_pid = 0
        self._channel.close()
        if self._stopping or code == 0:
            for pid in self._workers:
                os.kill(pid, signal.SIGTERM)
            return code
        if not self._kept and not self._workers:
            return code or 1  # it never came up: say so and stop, the node's supervisor will try again
        log.error("control died (status %d); it is started again, workers go on", code)
        if time.monotonic() - self._control_started < RESPAWN_SECONDS:
            time.sleep(RESPAWN_SECONDS)
        self._start_control()
        return 0

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
        for descriptor in (self._wake_read, self._wake_write, self._channel.fileno(), *self._own, *self._kept.values()):
            if descriptor not in keep:
                os.close(descriptor)
        self._channel.detach()
        self._kept.clear()

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

    def _read_control(self) -> None:
        try:
            payload, descriptors, _, _ = socket.recv_fds(self._channel, 2 * MESSAGE_BYTES, DESCRIPTORS)
        except OSError:
            return
        if not payload:
            return
        message = orjson.loads(payload)
        operation = message["op"]
        if operation == "fork":
            end = socket.socket(fileno=descriptors[0])
            pid = self._fork(lambda: self._worker_main(end), keep={end.fileno()})
            end.close()
            self._workers.add(pid)
            self._tell({"op": "forked", "number": message["number"], "pid": pid})
        elif operation == "keep":
            for key, descriptor in zip(message["keys"], descriptors, strict=True):
                self._drop(key)
                self._kept[key] = descriptor
        elif operation == "drop":
            for key in [key for key in self._kept if key.startswith(f"{message['uid']}/")]:
                self._drop(key)
        elif operation == "signal" and message["pid"] in self._workers:
            os.kill(message["pid"], message["signal"])

    def _drop(self, key: str) -> None:
        descriptor = self._kept.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def _tell(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        if not self._control_pid:
            return
        try:
            socket.send_fds(self._channel, [orjson.dumps(message)], descriptors or [])
        except OSError:
            log.warning("control does not take messages; it is about to be replaced")

    def _on_signal(self, number: int, frame: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
            if self._control_pid:
                os.kill(self._control_pid, signal.SIGTERM)
        elif number == signal.SIGHUP and self._control_pid:
            os.kill(self._control_pid, signal.SIGHUP)


def main(
    config: AgentConfig, control: Callable[[AgentConfig, socket.socket], None], worker: Callable[[socket.socket], None], own: Sequence[int] = ()
) -> int:
    """Run the daemon's processes for *config*; return the exit status. *own*: descriptors that only the supervisor keeps, such as its locks."""
    gc.collect()
    gc.freeze()
    return Supervisor(config, control, worker, own).run()
