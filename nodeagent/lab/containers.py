"""A container: started, watched, probed, and started again as its pod's restartPolicy says."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from nodeagent.errors import LabError
from nodeagent.lab import cgroup, probes
from nodeagent.lab.layout import Draft, Object
from nodeagent.lab.log_keeper import Streams
from nodeagent.lab.sandbox import Process, start
from nodeagent.resources.pod import Container, Probe

_BACKOFF_SECONDS = 0.1
_BACKOFF_LIMIT_SECONDS = 5.0
"""Far below Kubernetes' 10 s and 5 min: a lab is there to be waited for."""
_STABLE_SECONDS = 10.0
_WRITTEN_SECONDS = 2.0
"""For the last lines of a container that has ended to be in its log."""
_FIRST_READY_SECONDS = 0.1
"""Until it is ready for the first time, a container is asked more often than its period says."""
PROBE_OUTPUT = 300
"""Bytes of what a probe's command wrote that are told."""

Policy = Literal["Always", "OnFailure", "Never"]


async def exited(pid: int) -> int:
    """Wait until the child *pid* ends and return its exit status, negative for a signal."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # reaped when its cgroup was killed
        return -signal.SIGKILL


@dataclass(slots=True)
class RunningContainer:
    """A container and how it fares. ``changed`` is called whenever that changes."""

    spec: Container
    process: Process
    output: Callable[[], Streams]
    """Where it writes, anew for each start."""
    address: str
    policy: Policy
    grace_seconds: float
    changed: Callable[[], None]
    pid: int = 0
    """0: it does not run."""
    restarts: int = 0
    ready: bool = False
    exit_code: int | None = None
    finished: bool = False
    """It has ended and will not be started again."""
    message: str = ""
    """Why it is not ready, or is being restarted."""
    exit_message: str = ""
    """What ``message`` was when it ended last."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Its postStart hook has ended well and its startup probe has succeeded: what comes after it in
    its pod may start.
    """
    _passed_startup: asyncio.Event = field(default_factory=asyncio.Event)
    _written: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        """Start it; raises LabError if its program cannot be run."""
        self.process.cgroup.mkdir(exist_ok=True)
        streams = self.output()
        try:
            self.pid = start(self.process, streams.out, streams.err).settle()
        finally:
            streams.close()
        self._written = streams.ended
        self.ready = not self.spec.readiness_probe and not self.spec.startup_probe and not self._hook("post_start")
        self.message = ""
        self.begun.clear()
        self._passed_startup.clear()
        if not self.spec.startup_probe:
            self._passed_startup.set()

    async def supervise(self) -> None:
        """Stay with the container, already started, until it ends for good."""
        backoff = _BACKOFF_SECONDS
        while True:
            begun = time.monotonic()
            if self.pid:
                self.exit_code = await self._watch()
                await self._all_written()
            else:
                self.exit_code = 128
            self.pid = 0
            self.ready = False
            self.exit_message = self.message
            if self.policy == "Never" or (self.policy == "OnFailure" and self.exit_code == 0):
                self.finished = True
                self.changed()
                return
            self.changed()
            backoff = _BACKOFF_SECONDS if time.monotonic() - begun > _STABLE_SECONDS else backoff
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _BACKOFF_LIMIT_SECONDS)
            self.restarts += 1
            try:
                self.start()
            except LabError as error:
                self.message = str(error)
            self.changed()

    async def _all_written(self) -> None:
        """Wait for the last lines: who is told that it has ended looks for them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_WRITTEN_SECONDS):
                await self._written.wait()

    async def _watch(self) -> int:
        declared = {
            "startup": self.spec.startup_probe,
            "readiness": self.spec.readiness_probe,
            "liveness": self.spec.liveness_probe,
        }
        tasks = [asyncio.create_task(self._probe(kind, probe)) for kind, probe in declared.items() if probe]
        tasks.append(asyncio.create_task(self._begin()))
        try:
            return await exited(self.pid)
        finally:
            for task in tasks:
                task.cancel()
            cgroup.kill(self.process.cgroup, parent=True)  # what the program left behind

    async def _begin(self) -> None:
        """Run the postStart hook; a container whose hook fails is killed and started again (Kubernetes' rule)."""
        if hook := self._hook("post_start"):
            status = await self._run(hook)
            if status:
                self.message = f"postStart: exit status {status}"
                await self.terminate(self.grace_seconds)
                return
            if not self.spec.readiness_probe and not self.spec.startup_probe:
                self._set_ready(True, "")
        await self._passed_startup.wait()
        self.begun.set()

    def _hook(self, name: Literal["post_start", "pre_stop"]) -> tuple[str, ...]:
        """Return the command of a lifecycle hook, empty: there is none."""
        handler = getattr(self.spec.lifecycle, name, None)
        return handler.exec.command if handler else ()

    async def _probe(self, kind: str, probe: Probe) -> None:
        if kind != "startup":
            await self._passed_startup.wait()
        await asyncio.sleep(probe.initial_delay_seconds)
        streak = 0
        succeeding = False
        eager = _FIRST_READY_SECONDS
        while True:
            reason = await probes.check(probe, self.spec, self.address, self._ask)
            streak = streak + 1 if succeeding == (not reason) else 1
            succeeding = not reason
            if reason and kind != "liveness" and not self.ready:
                self._set_ready(False, f"{kind} probe failed: {reason}")  # said at once; it was not ready before either
            if streak >= (probe.success_threshold if succeeding else probe.failure_threshold):
                if kind == "readiness":
                    self._set_ready(succeeding, f"readiness probe failed: {reason}" if reason else "")
                elif not succeeding:
                    self.message = f"{kind} probe failed: {reason}"
                    await self.terminate(self.grace_seconds)
                elif kind == "startup":
                    self._passed_startup.set()
                    self._set_ready(not self.spec.readiness_probe, "")
                    return
            waiting_for_first = kind == "readiness" and not self.ready and not self.exit_code
            await asyncio.sleep(min(eager, probe.period_seconds) if waiting_for_first else probe.period_seconds)
            eager *= 1.5

    def _set_ready(self, value: bool, message: str) -> None:
        if (self.ready, self.message) != (value, message):
            self.ready = value
            self.message = message
            self.changed()

    async def _ask(self, argv: Sequence[str]) -> tuple[int, str]:
        """Run a probe's command in the container; return its exit status and the end of what it wrote."""
        with open(os.memfd_create("probe"), "rb") as output:
            status = await self._run(argv, output.fileno())
            size = os.fstat(output.fileno()).st_size
            return status, os.pread(output.fileno(), PROBE_OUTPUT, max(0, size - PROBE_OUTPUT)).decode(
                errors="replace"
            ).strip()

    async def _run(self, argv: Sequence[str], output: int | None = None) -> int:
        """Run a command in the container, its output written to that descriptor; cancelled, it is killed."""
        process = replace(self.process, argv=tuple(argv), namespaces=self.pid, mounts=())
        try:
            with open(os.devnull, "wb") as nowhere:
                to = nowhere.fileno() if output is None else output
                pid = start(process, to, to).settle()
        except (LabError, OSError):
            return 127
        try:
            return await exited(pid)
        except asyncio.CancelledError:
            # it has just ended by itself; an error here would hide that this task was cancelled
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise

    async def terminate(self, grace_seconds: float) -> None:
        """Send SIGTERM, after *grace_seconds* SIGKILL, and return when the program is gone."""
        pid = self.pid
        if not pid:
            return
        deadline = time.monotonic() + grace_seconds
        if hook := self._hook("pre_stop"):
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._run(hook)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while self.pid == pid and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        if self.pid == pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def told(self) -> str:
        """Say in words why it is not ready."""
        ended = "" if self.exit_code is None else f"ended with exit status {self.exit_code}"
        again = f", started again {self.restarts} times" if self.restarts else ""
        parts = [
            f"{ended}{again}",
            self.message or ("" if self.pid or self.exit_code is not None else "not started yet"),
            self.exit_message,
        ]
        return "; ".join(part for part in parts if part) or "not ready yet"

    def status(self) -> Object:
        """Return its entry of the pod's ``status.containerStatuses``."""
        state: Draft = {"waiting": {"reason": "CrashLoopBackOff", "message": self.message}}
        if self.pid:
            state = {"running": {}}
        elif self.finished:
            state = {"terminated": {"exitCode": self.exit_code}}
        found = {
            "name": self.spec.name,
            "ready": self.ready,
            "restartCount": self.restarts,
            "started": bool(self.pid) and self._passed_startup.is_set(),
            "state": state,
        }
        if self.pid:
            found["containerID"] = f"lab://{self.pid}"
        if self.exit_code is not None:
            found["lastState"] = {"terminated": {"exitCode": self.exit_code, "message": self.exit_message}}
        return found
