"""One shipper under one load: a file that is there already (catch-up), or lines at a steady rate."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from nodeagent.compare import measure
from nodeagent.compare.load import CompareError
from nodeagent.compare.logs.lines import LineKind, line
from nodeagent.compare.logs.shippers import AGENT, IDLE, Shipper, ShipperTask

_START_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.05
_STEADY_PATIENCE: Final = 10.0
_SETTLE_SECONDS: Final = 2.0
_WRITE_SECONDS: Final = 0.005
_SAMPLE: Final = 10_000
"""Different lines that a steady writer writes again and again."""
_WARM_PART: Final = 0.05
"""Of a file's lines: what comes until then is start and warming up."""


@dataclass(frozen=True, slots=True)
class LogSample:
    """What one shipper did under one load."""

    lines_per_second: float
    cpu_us_per_line: float
    cpu_percent: float
    """Of a core."""
    memory_bytes: int
    """PSS at its highest; the agent's: above a daemon without a collector."""


class SinkProcess:
    """The counting sink, in a process of its own on *core*."""

    def __init__(self, core: int) -> None:
        argv = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "nodeagent.compare.logs.sink"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.strip().isdigit():
            self.close()
            raise CompareError("the sink that counts lines did not start")
        self.port = int(said)

    def counted(self) -> dict[str, Any]:
        """Return what came, as :class:`nodeagent.compare.logs.sink.LinesCounted` names it."""
        return self._ask("GET")

    def reset(self) -> None:
        """Count anew."""
        self._ask("PUT")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, method: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, "/counted")
            told: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return told


@dataclass(frozen=True, slots=True)
class Bench:
    """Where shippers are measured."""

    sink: SinkProcess
    shipper_core: int
    other_core: int
    """Of the sink and the writer."""

    def catch_up(self, shipper: Shipper, path: Path, kind: LineKind, lines: int, seconds: float) -> LogSample:
        """Have *shipper* deliver the file *path* of so many *lines*, for *seconds* at most; what comes until a
        twentieth of it has arrived does not count. Raises CompareError if it delivers nothing.
        """
        self.sink.reset()
        with self._running(shipper, str(path), kind) as running:
            start = self._until(running, int(lines * _WARM_PART), _START_SECONDS)
            cpu_before = running.cpu()
            self._until(running, lines, seconds)
            cpu = running.cpu() - cpu_before
            told = self.sink.counted()
            arrived = told["lines"] - start["lines"]
            return _sample(arrived, told["last"] - start["last"], cpu, running.memory())

    def steady(self, shipper: Shipper, rate: int, files: int, seconds: float) -> LogSample:
        """Write *rate* lines a second over so many *files* for *seconds* while *shipper* reads them. Raises
        CompareError if lines are missing after another 10 s.
        """
        self.sink.reset()
        with tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name, ExitStack() as stack:
            written = [Path(name) / f"{number}.log" for number in range(files)]
            opened: list[IO[bytes]] = [stack.enter_context(path.open("ab", buffering=0)) for path in written]
            with self._running(shipper, f"{name}/*.log", "plain") as running:
                time.sleep(_SETTLE_SECONDS)
                cpu_before = running.cpu()
                started = time.monotonic()
                sent = _write(opened, rate, seconds)
                took = time.monotonic() - started
                cpu = running.cpu() - cpu_before
                arrived = self._until(running, sent, _STEADY_PATIENCE)["lines"]
                if arrived < sent:
                    raise CompareError(f"{shipper.name}: {sent - arrived} of {sent} lines did not come in time")
                return _sample(sent, took, cpu, running.memory())

    @contextmanager
    def _running(self, shipper: Shipper, files: str, kind: LineKind) -> Iterator[_Running]:
        """Run *shipper* on its core, in a folder of its own, and remove all of it."""
        with tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name:
            folder = Path(name)
            command = shipper.command(ShipperTask(files, folder, self.sink.port, kind == "cri"))
            with (folder / "said").open("wb") as said:
                process = subprocess.Popen(
                    ["taskset", "--cpu-list", str(self.shipper_core), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env={**os.environ, "LD_LIBRARY_PATH": shipper.libraries} if shipper.libraries else None,
                    start_new_session=True,
                )
            try:
                yield _Running(shipper, process, folder)
            finally:
                _end(process)

    def _until(self, running: _Running, lines: int, seconds: float) -> dict[str, Any]:
        """Return what the sink counted once there are so many *lines*, or *seconds* have passed. Raises
        CompareError if the shipper ends, or brings nothing at all.
        """
        end = time.monotonic() + seconds
        while True:
            told = self.sink.counted()
            if told["lines"] >= lines:
                return told
            running.check()
            if time.monotonic() > end:
                break
            time.sleep(_LOOK_SECONDS)
        if not told["lines"]:
            raise CompareError(f"{running.shipper.name}: no line came in {seconds:g} s; {running.words()}")
        return told


@dataclass(frozen=True, slots=True)
class _Running:
    """A shipper that runs."""

    shipper: Shipper
    process: subprocess.Popen[bytes]
    folder: Path

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes."""
        return measure.cpu_seconds(_tree(self.process.pid))

    def memory(self) -> int:
        """Return the bytes that it takes."""
        idle = int((self.folder / IDLE).read_text()) if self.shipper is AGENT else 0
        return measure.memory(_tree(self.process.pid)) - idle

    def words(self) -> str:
        """Return the end of what it printed."""
        return (self.folder / "said").read_text(errors="replace").strip()[-300:] or "it says nothing"

    def check(self) -> None:
        """Raises CompareError if it has ended."""
        if (status := self.process.poll()) is not None:
            raise CompareError(f"{self.shipper.name} ended with {status}: {self.words()}")


def _write(files: list[IO[bytes]], rate: int, seconds: float) -> int:
    """Write lines to *files* in turn, *rate* a second; return how many."""
    lines = [line(number, "plain") for number in range(_SAMPLE)]
    started = time.monotonic()
    sent = 0
    turn = 0
    while (passed := time.monotonic() - started) < seconds:
        due = int(passed * rate) - sent
        if due > 0:
            files[turn % len(files)].write(b"".join(lines[(sent + at) % _SAMPLE] for at in range(due)))
            turn += 1
            sent += due
        time.sleep(_WRITE_SECONDS)
    return sent


def _sample(lines: int, seconds: float, cpu: float, memory: int) -> LogSample:
    if lines <= 0 or seconds <= 0:
        raise CompareError("all lines came at once: the file is too short for a shipper that fast")
    return LogSample(lines / seconds, 1e6 * cpu / lines, 100 * cpu / seconds, memory)


def _tree(pid: int) -> list[int]:
    """Return *pid* and all that it started."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*"):
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:  # it has ended
                continue
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process* and all that it started: they are a session of their own."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
