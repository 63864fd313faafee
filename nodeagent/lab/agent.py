"""The node agent of a lab node: its ``agent.yaml``, and its processes to be started, stopped and killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from nodeagent.errors import LabError
from nodeagent.istio import READY_PORT
from nodeagent.lab import cgroup, http, linux
from nodeagent.lab.layout import Layout, Node
from nodeagent.lab.processes import inside, spawn, tail

_BPFFS = Path("/sys/fs/bpf")
READY_SECONDS = 90.0
_STOP_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent of one node. ``cgroup`` holds all of its processes."""

    layout: Layout
    node: Node
    cgroup: Path
    overlay: Mapping[str, object]
    """Merged over the lab's ``agent.yaml``."""

    @property
    def directory(self) -> Path:
        return self.layout.node(self.node.name)

    @property
    def config_path(self) -> Path:
        return self.directory / "agent.yaml"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    @property
    def admin_socket(self) -> Path:
        return self.directory / "run" / "admin.sock"

    @property
    def pins(self) -> Path:
        return self.layout.pins(self.node.name)

    @property
    def pid(self) -> int:
        """Return the daemon's first process; raises LabError if it does not run."""
        with suppress(FileNotFoundError, ValueError):
            pid = int((self.directory / "agent.pid").read_text())
            if pid in self.processes():
                return pid
        raise LabError(f"{self.node.name}: the agent does not run; the end of its log:\n{tail(self.log)}")

    @property
    def alive(self) -> bool:
        return bool(self.processes())

    def processes(self) -> list[int]:
        """Return the pids of the agent and all that it started."""
        return cgroup.processes(self.cgroup)

    def config(self) -> dict[str, object]:
        """Return the agent.yaml of this node."""
        pods = self.layout.cgroup(cgroup.hierarchy()) / self.node.name / "kubepods"
        base: dict[str, object] = {
            "node": self.node.name,
            "source": str(self.layout.state),
            "runtimeDirectory": str(self.directory / "run"),
            "redirect": {"cgroup": str(pods), "pinDirectory": str(self.pins)},
            "identity": {"caDirectory": str(self.layout.state / "ca")},
            "telemetry": {"accessLog": {"path": str(self.access_log)}},
        }
        if "logs" in self.overlay:
            base["logs"] = {
                "stateDirectory": str(self.directory / "logs"),
                "podLogs": str(self.layout.pod_logs(self.node.name)),
                "podVolumes": str(self.layout.node(self.node.name) / "volumes"),
            }
        return merge(base, self.overlay)

    def start(self, *, python: str = sys.executable, wait_seconds: float = READY_SECONDS) -> None:
        """Write agent.yaml, start the daemon in the node's netns and wait until it is ready; raises
        LabError with the end of its log. *python*: the interpreter of the release that is started.
        """
        if self.alive:
            return
        _need_bpffs()
        for directory in (self.directory / "run", self.layout.state / "ca"):
            directory.mkdir(exist_ok=True)
        (self.layout.state / "ca").chmod(0o700)
        self.config_path.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        self._spawn(python)
        if wait_seconds:
            self.wait_ready(wait_seconds)

    def _spawn(self, python: str) -> int:
        argv = [python, "-m", "nodeagent", "run", "-c", str(self.config_path)]
        pid = spawn(inside(self.layout.netns(self.node.name), argv), self.cgroup, self.log)
        (self.directory / "agent.pid").write_text(str(pid))
        return pid

    def succeed(self, *, python: str = sys.executable, wait_seconds: float = READY_SECONDS) -> int:
        """Start another daemon beside the one that runs, which takes the node over from it, and wait
        until the new one is ready; return the pid of the old one.

        *python*: the interpreter of the release that is started. Raises LabError with the end of its log.
        """
        before = self.pid
        self.config_path.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        pid = self._spawn(python)
        if wait_seconds:
            self.wait_successor(pid, wait_seconds)
        return before

    def is_again(self, pid: int) -> None:
        """Say that the daemon *pid* is the node's: one that was to take over is gone."""
        (self.directory / "agent.pid").write_text(str(pid))

    def wait_successor(self, pid: int, seconds: float = READY_SECONDS) -> None:
        """Wait until the daemon *pid* has taken the node over; raises LabError if it ends, or takes longer."""
        deadline = time.monotonic() + seconds
        while not any(f" {pid} " in line and "has taken over" in line for line in self.log.read_text().splitlines()):
            if not cgroup.reap(pid) or time.monotonic() > deadline:
                (self.directory / "agent.pid").unlink(missing_ok=True)
                raise LabError(
                    f"{self.node.name}: the agent with pid {pid} has not taken over; the end of its "
                    f"log:\n{tail(self.log)}"
                )
            time.sleep(0.02)
        self.wait_ready(seconds)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the readiness endpoint answers 200; raises LabError if the daemon ends or that
        takes longer than *seconds*.
        """
        deadline = time.monotonic() + seconds
        answer = "no answer"
        while time.monotonic() < deadline:
            pid = int((self.directory / "agent.pid").read_text())
            cgroup.reap(pid)
            if not self.alive:
                raise LabError(
                    f"{self.node.name}: the agent ended before it was ready; the end of its log:\n{tail(self.log)}"
                )
            answer = self._readiness()
            if answer.startswith("200"):
                return
            time.sleep(0.02)
        raise LabError(
            f"{self.node.name}: the agent is not ready after {seconds:g} s ({answer}); the end of its "
            f"log:\n{tail(self.log)}"
        )

    def ready(self) -> bool:
        """Say whether the readiness endpoint answers 200."""
        return self._readiness().startswith("200")

    def _readiness(self) -> str:
        telemetry = self.config()["telemetry"]
        port = telemetry.get("readyPort", READY_PORT) if isinstance(telemetry, dict) else READY_PORT
        try:
            status, text = http.get(self.layout.netns(self.node.name), port, "/ready", seconds=2)
        except OSError as error:
            return str(error)
        return f"{status} {text.strip():.200}"

    def stop(self, *, wait_seconds: float = _STOP_SECONDS) -> None:
        """Send SIGTERM and wait until every process is gone; raises LabError if that takes longer
        than *wait_seconds*.
        """
        if not self.alive:
            return
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + wait_seconds
        while cgroup.reap(pid) or self.alive:
            if time.monotonic() > deadline:
                raise LabError(
                    f"{self.node.name}: the agent has not ended {wait_seconds:g} s after SIGTERM; the end of its "
                    f"log:\n{tail(self.log)}"
                )
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the whole daemon, all processes at once (SIGKILL)."""
        cgroup.kill(self.cgroup)
        with suppress(FileNotFoundError):
            cgroup.reap_all([int((self.directory / "agent.pid").read_text())])


def merge(base: Mapping[str, object], overlay: Mapping[str, object]) -> dict[str, object]:
    """Return *base* with *overlay*'s values, mapping by mapping."""
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _need_bpffs() -> None:
    if not any(line.split()[1:3] == [str(_BPFFS), "bpf"] for line in Path("/proc/mounts").read_text().splitlines()):
        linux.mount("bpf", _BPFFS, "bpf", data="mode=0700")
