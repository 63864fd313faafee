"""One shipper under one load: a file that is there already (catch-up), or lines at a steady rate."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from nodeagent.compare import measure
from nodeagent.compare.load import CompareError, Sample
from nodeagent.compare.logs import lines as lines_of
from nodeagent.compare.logs.lines import LineKind, line
from nodeagent.compare.logs.shippers import AGENT, IDLE, Shipper, ShipperTask
from nodeagent.compare.logs.sink_process import SinkProcess
from nodeagent.logs.tail.positions import FILE, PositionsError, decoded

_START_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05
_STEADY_PATIENCE: Final = 10.0
_SETTLE_SECONDS: Final = 2.0
_WRITE_SECONDS: Final = 0.005
_SAMPLE: Final = 10_000
"""Different lines that a steady writer writes again and again."""
_BATCHES: Final = 10
_LINES_A_FILE: Final = 20
_FORGET_SECONDS: Final = 1.0
"""What of files that are gone is forgotten after ten minutes is here after so long."""
_CONNECTIONS: Final = 32
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
    growth_bytes: int = 0
    """What of it is more than near the beginning, where that is what is measured."""


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

    def outage(self, shipper: Shipper, path: Path, lines: int, seconds: float, *, refusing: bool) -> LogSample:
        """Have *shipper* read the file *path* of so many *lines* while the sink is not there, or answers 429
        (*refusing*): what waits goes to disk. Memory is compared with that after a tenth of the file. Raises
        CompareError if it is not read within *seconds*.
        """
        self.sink.reset()
        port = self.sink.port
        if refusing:
            self.sink.refuse()
        else:
            with socket.create_server(("127.0.0.1", 0)) as nobody:
                port = nobody.getsockname()[1]
        size = path.stat().st_size
        end = time.monotonic() + seconds
        with self._running(shipper, str(path), "plain", port=port) as running:
            running.until_read(size // 10, end)
            early = running.memory()
            started = time.monotonic()
            cpu_before = running.cpu()
            running.until_read(size, end)
            sample = _sample(lines * 9 // 10, time.monotonic() - started, running.cpu() - cpu_before, running.memory())
        return replace(sample, growth_bytes=sample.memory_bytes - early)

    def come_and_go(self, shipper: Shipper, files: int, seconds: float) -> LogSample:
        """Have so many *files* come, be read, go and be forgotten, a tenth at a time; memory is compared with that
        after the first tenth. Raises CompareError if a tenth is not read, or not forgotten, within *seconds*.
        """
        self.sink.reset()
        batch = files // _BATCHES
        with (
            tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name,
            self._running(shipper, f"{name}/*.log", "plain", forget=_FORGET_SECONDS) as running,
        ):
            early = late = most = sent = 0
            idle = running.descriptors(seconds)
            started = time.monotonic()
            cpu_before = running.cpu()
            for number in range(_BATCHES):
                paths = [Path(name) / f"{number * batch + each}.log" for each in range(batch)]
                for path in paths:
                    lines_of.write(path, _LINES_A_FILE, "plain")
                sent = (number + 1) * batch * _LINES_A_FILE
                if (came := self._until(running, sent, seconds)["lines"]) < sent:
                    raise CompareError(
                        f"{shipper.name}: {sent - came} lines of {batch} files that came were not read in {seconds:g} s"
                    )
                most = max(most, running.memory())
                for path in paths:
                    path.unlink()
                late = running.forgotten(idle, seconds)
                early = early or late
            sample = _sample(sent, time.monotonic() - started, running.cpu() - cpu_before, most)
        return replace(sample, growth_bytes=late - early)

    def at_full_load(
        self, shipper: Shipper, path: Path, lines: int, measure: Callable[[], Sample]
    ) -> tuple[Sample, LogSample]:
        """Return what *measure* says while *shipper* reads the file *path* of so many *lines*, as fast as it can, and
        what that did meanwhile. Raises CompareError as :meth:`while_it_reads` does, or if it ends.
        """
        self.sink.reset()
        with self._running(shipper, str(path), "plain") as running:
            self._until(running, 1, _START_SECONDS)
            return self.while_it_reads(shipper.name, lines, measure, cpu=running.cpu, memory=running.memory)

    def while_it_reads(
        self,
        name: str,
        lines: int,
        measure: Callable[[], Sample],
        *,
        cpu: Callable[[], float],
        memory: Callable[[], int],
    ) -> tuple[Sample, LogSample]:
        """Return what *measure* says from when the first lines of the shipper *name* have come, and what that one did
        meanwhile, by the CPU seconds and bytes that it has. Raises CompareError if it does not begin, does nothing
        meanwhile, or was done before the end.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not (before := self.sink.counted()["lines"]):
            if time.monotonic() > deadline:
                raise CompareError(f"{name}: no line came in {_START_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)
        cpu_before = cpu()
        started = time.monotonic()
        measured = measure()
        told = self.sink.counted()["lines"]
        took = time.monotonic() - started
        if told >= lines:
            raise CompareError("all lines were read before the other figure was measured: the file is too short")
        if told == before:
            raise CompareError("no line was delivered while the other figure was measured: it says nothing")
        return measured, _sample(told - before, took, cpu() - cpu_before, memory())

    @contextmanager
    def _running(
        self, shipper: Shipper, files: str, kind: LineKind, *, port: int = 0, forget: float | None = None
    ) -> Iterator[_Running]:
        """Run *shipper* on its core, in a folder of its own, and remove all of it; *port*: another than the sink's."""
        with tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name:
            folder = Path(name)
            command = shipper.command(ShipperTask(files, folder, port or self.sink.port, kind == "cri", forget))
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

    def until_read(self, size: int, end: float) -> None:
        """Return once so many bytes were read. Raises CompareError if that is not before *end*."""
        while self._read() < size:
            self.check()
            if time.monotonic() > end:
                raise CompareError(f"{self.shipper.name}: {size} bytes were not read in time: {self.words()}")
            time.sleep(_LOOK_SECONDS)

    def _read(self) -> int:
        """Return the bytes that its collector, a child, has read since its start."""
        total = 0
        for pid in _tree(self.process.pid)[1:]:
            with suppress(OSError):
                total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
        return total

    def descriptors(self, seconds: float) -> int:
        """Return how many descriptors its collector has, once it is there; raises CompareError if that is not within
        *seconds*.
        """
        end = time.monotonic() + seconds
        while not (found := self._descriptors()):
            self.check()
            if time.monotonic() > end:
                raise CompareError(f"{self.shipper.name} did not start: {self.words()}")
            time.sleep(_LOOK_SECONDS)
        return found

    def _descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").glob("*"))) for pid in _tree(self.process.pid)[1:])

    def forgotten(self, idle: int, seconds: float) -> int:
        """Return the bytes that it takes once it has no more descriptors than *idle*, but for connections, and
        remembers nothing of what it read. Raises CompareError if that is not within *seconds*.
        """
        end = time.monotonic() + seconds
        while (more := self._descriptors() - idle) > _CONNECTIONS or self._positions():
            self.check()
            if time.monotonic() > end:
                raise CompareError(
                    f"{self.shipper.name} keeps {more} more descriptors than at its start, and positions "
                    f"({self._positions()}), though all files are gone for {seconds:g} s: {self.words()}"
                )
            time.sleep(_LOOK_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        return self.memory()

    def _positions(self) -> str:
        """Return of which contents a restart would know, or why nobody can tell yet; empty: of none."""
        try:
            entries = decoded((self.folder / FILE).read_bytes())
        except (FileNotFoundError, PositionsError) as error:
            return str(error)
        return ", ".join(f"{each.name} up to {each.offset}{', gone' * each.gone}" for each in entries)

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
    """End *process* and all that it started, whatever their sessions."""
    started = _tree(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    process.kill()
    for pid in started[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
