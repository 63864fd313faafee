"""A node whose logs are collected, of real parts: the search for files, the collector's process and what control
counts of it; around them applications that number their lines, and a sink of moods that remembers all it is sent.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nodeagent.control.log_collector import LogCollector
from nodeagent.control.log_finder import LogFinder
from nodeagent.control.log_metrics import LogMetrics
from nodeagent.logs.delivery.making import BUFFER, DEAD_LETTERS
from nodeagent.logs.settings import LogSettings
from nodeagent.messages import Fork, Signal, StartCollector, ToSupervisor
from nodeagent.parts import Parts
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources.objects import ContainerObject, PodObject
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid
from nodeagent.wire import Unchecked
from tests.fakes.bulk import Bulk, Item, ReadRequest, response
from tests.unit.logs.journal_files import JournalWriter
from tests.waiting import until

ROOT = Path(__file__).parents[3]
PROCESS = Path(__file__).with_name("collector_process.py")
POD = PodObject(
    namespace="shop", name="web", uid=PodUid("u1"), created="", terminating=False, labels={},
    annotations={"nodeagent.io/log-files": "data/*.log"}, owners=(), node="node1", service_account="",
    host_network=False, containers=(ContainerObject((), (), "app"),), phase="Running", addresses=(), ready=True,
)  # fmt: skip
REFUSED = 97
"""Of so many lines the sink refuses one for good."""
MOST_ROTATED = 40
"""Files that an application leaves behind at most: nobody keeps pace who is killed all the time."""
MOST_BEHIND = 10_000
"""Likewise, lines."""
SETTLED = ("delivered", "dropped", "dead_lettered", "returned")


def text_of(log: str, number: int) -> str:
    """Return what the line of that *number* says, whole."""
    filler = blake2b(f"{number}".encode(), digest_size=1 + number % 40).hexdigest()
    return f"{log} {number:08} {filler}."


def number_of(text: str) -> int:
    return int(text.split()[1])


class Application:
    """Numbers the lines of one file, and has it rotated in every way. What is rotated is removed once it may be."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        path.parent.mkdir(parents=True)
        self.name = path.parent.name
        self.number = 0
        self._path = path
        self._chance = chance
        self._rotations = 0
        self._rotated: list[tuple[Path, int]] = []
        """Each with the number of its last line."""
        self.told: tuple[int, frozenset[tuple[str, int]]] = (0, frozenset())
        """What rotated files it may remove: those whose lines go up to that number, and those of a name and size."""

    def texts(self) -> Iterator[str]:
        return (text_of(self.name, number) for number in range(1, self.number + 1))

    def write(self, count: int) -> None:
        with open(self._path, "a") as file:
            for _ in range(count):
                line = self._line(text_of(self.name, self.number + 1))
                if self._chance.random() < 0.01:
                    file.write(line[: len(line) // 2])
                    file.flush()
                    line = line[len(line) // 2 :]
                file.write(line)
                self.number += 1

    def _line(self, text: str) -> str:
        return f"{text}\n"

    def go_on(self, ended: threading.Event) -> None:
        while not ended.is_set():
            if self.number - self.told[0] < MOST_BEHIND:
                self.write(self._chance.randrange(1, 60))
            drawn = self._chance.random() if len(self._rotated) < MOST_ROTATED else 1.0
            if drawn < 0.08:
                self.rotate()
            elif drawn < 0.1:
                for _ in range(4):  # more than one between two looks
                    self.rotate()
                    self.write(self._chance.randrange(1, 4))
            self._tidy()
            ended.wait(self._chance.random() / 20)

    def rotate(self) -> None:
        self._rotations += 1
        rotated = self._path.with_name(f"{self._path.name}.{self._rotations:05}")
        way = self._chance.choice(("rename", "copy", "gzip"))
        if way == "copy":
            shutil.copyfile(self._path, rotated)
            os.truncate(self._path, 0)
        else:
            os.rename(self._path, rotated)
            self._path.touch()
        self._rotated.append((rotated, self.number))
        if way == "gzip":
            self._compress(len(self._rotated) - 1)

    def _compress(self, at: int) -> None:
        rotated, last = self._rotated[at]
        making = Path(f"{rotated}.tmp")
        with gzip.open(making, "wb", compresslevel=1) as file:
            file.write(rotated.read_bytes())
        making.rename(f"{rotated}.gz")
        rotated.unlink()
        self._rotated[at] = (Path(f"{rotated}.gz"), last)

    def _tidy(self) -> None:
        arrived, settled = self.told
        for path, last in list(self._rotated):
            if last <= arrived or (path.name, path.stat().st_size) in settled:
                path.unlink()
                self._rotated.remove((path, last))


class Container(Application):
    """One whose output the runtime writes and the kubelet rotates: it renames, and compresses what is older."""

    def _line(self, text: str) -> str:
        head = f"2026-11-29T10:00:00.{self.number:09}Z {'stderr' if self.number % 7 == 0 else 'stdout'}"
        if self.number % 11:
            return f"{head} F {text}\n"
        cut = len(text) // 2
        return f"{head} P {text[:cut]}\n{head} F {text[cut:]}\n"

    def rotate(self) -> None:
        self._rotations += 1
        rotated = self._path.with_name(f"{self._path.name}.20261129-10{self._rotations:04}")
        os.rename(self._path, rotated)
        self._path.touch()
        self._rotated.append((rotated, self.number))
        plain = [at for at, (path, _) in enumerate(self._rotated) if path.suffix != ".gz"]
        if len(plain) > 1 and self._chance.random() < 0.7:
            self._compress(plain[0])


class Journal(Application):
    """systemd's journal, whose entries its own program appends; rotated as journald does."""

    MOST_ROTATED = 8
    """Each takes 8 MiB of the disk, whatever it holds."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        super().__init__(path, chance)
        self.name = "journal"
        self._writer: JournalWriter | None = None

    def write(self, count: int) -> None:
        self._writer = self._writer or JournalWriter(self._path, self.number)
        entries = [{"MESSAGE": text_of(self.name, self.number + at).encode()} for at in range(1, count + 1)]
        self._writer.write(entries)
        self.number += count

    def go_on(self, ended: threading.Event) -> None:
        super().go_on(ended)
        self._close()

    def rotate(self) -> None:
        if self._writer is None or len(self._rotated) >= self.MOST_ROTATED:
            return
        self._close()
        self._rotations += 1
        rotated = self._path.with_name(f"system@{self._rotations:032x}-{self.number:016x}.journal")
        self._path.rename(rotated)
        self._rotated.append((rotated, self.number))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class MoodySink(Bulk):
    """Is down for a while, is busy as a whole or for some records, refuses some for good, and dies before or within
    its answer, having taken all or half of what it was sent.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.down = False
        self.well = False
        """Whether it has no moods any more."""
        self.refusing = True
        self.contents: dict[str, bytes] = {}
        """What every id stood for, wherever it was seen first: by hash."""
        self.clashes: list[str] = []
        """Ids that stood for something else later."""
        self.taken: dict[str, set[str]] = {}
        """Texts, with their ids."""
        self._chance = chance

    def _answer(self, request: ReadRequest) -> bytes:
        self.requests.clear()
        drawn = 1.0 if self.well else self._chance.random()
        if self.down or drawn < 0.08:
            return response(self._chance.choice((429, 503)), b"{}")
        self.torn = drawn < 0.3
        path, headers, body = request
        if drawn < 0.15:
            lines = body.split(b"\n")
            request = (path, headers, b"\n".join(lines[: len(lines) // 4 * 2]) + b"\n")
        answer = super()._answer(request)
        return b"" if drawn < 0.22 else answer

    def _create(self, action: Any, document: Any) -> Item:
        told = content_of(document)
        name: str = action["_id"]
        if self.contents.setdefault(name, told) != told:
            self.clashes.append(f"{name}: {document}")
        text: str = said(document)
        if self.refusing and number_of(text) % REFUSED == 0:
            error = {"type": "document_parsing_exception", "reason": "it is one of those"}
            return {"_id": name, "status": 400, "error": error}
        if not self.well and self._chance.random() < 0.02:
            error = {"type": "es_rejected_execution_exception", "reason": "busy"}
            return {"_id": name, "status": self._chance.choice((429, 503)), "error": error}
        names = self.taken.setdefault(text, set())
        if name in names:
            return {"_id": name, "status": 409, "error": {"type": "version_conflict_engine_exception"}}
        names.add(name)
        return {"_id": name, "status": 201}


def said(document: Any) -> str:
    """Return what an application said, in a line or an entry of the journal."""
    text: str = document["MESSAGE" if "MESSAGE" in document else "log"]
    return text


def content_of(document: Any) -> bytes:
    """Return what must be the same whenever it comes: the time of a volume's line is when it was read."""
    kept = document if "stream" in document else {**document, "@timestamp": ""}
    return blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=8).digest()


class Forks:
    """The supervisor, as far as the collector needs one."""

    def __init__(self, log: Path) -> None:
        self.collector: LogCollector
        self.deaths = 0
        self._log = log
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: ToSupervisor) -> None:
        match message:
            case Fork():
                with self._log.open("ab") as log:
                    process = subprocess.Popen(
                        [sys.executable, PROCESS, str(message.theirs)],
                        env=os.environ | {"PYTHONPATH": str(ROOT)}, pass_fds=[message.theirs], stderr=log,
                        start_new_session=True,  # with a share of its own: what it gives way to is the daemon
                    )  # fmt: skip
                self._processes.append(process)
                task = asyncio.get_running_loop().create_task(self._wait(message.number, process))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Signal():
                with suppress(ProcessLookupError):
                    os.kill(message.pid, message.signal)

    async def end(self) -> None:
        """Leave none behind."""
        for each in self._processes:
            each.kill()
        await asyncio.gather(*self._tasks)

    async def _wait(self, number: int, process: subprocess.Popen[bytes]) -> None:
        self.collector.forked(number, process.pid)
        status = await asyncio.to_thread(process.wait)
        self.deaths += 1
        self.collector.exited(process.pid, status)


def is_settled(file: Unchecked) -> bool:
    """Say whether all of what a row tells of is settled. A compressed file's row tells other bytes than it has, and so
    does a journal's.
    """
    return not file["file"].endswith((".gz", ".journal")) and 0 < file["size"] <= file["settled"]


@dataclass
class Node:
    """All of it."""

    root: Path
    sink: MoodySink
    applications: list[Application]
    collector: LogCollector
    forks: Forks
    metrics: LogMetrics
    store: Store
    files: list[Unchecked] = field(default_factory=list)
    """As the collector told them last."""
    warnings: set[str] = field(default_factory=set)
    """All that it ever warned of."""
    states: set[str] = field(default_factory=set)
    """All that files ever were in."""

    @property
    def state(self) -> Path:
        return self.root / "state"

    def segments(self) -> int:
        """Return the bytes of the buffer as they are on disk."""
        sizes = 0
        for each in (self.state / BUFFER / "all").glob("*.segment"):
            with suppress(FileNotFoundError):
                sizes += each.stat().st_size
        return sizes

    async def report(self) -> None:
        """Ask the collector how it fares, and tell metrics and applications."""
        answer = await self.collector.ask()
        if not answer.sinks:
            return  # it died
        self.metrics.tell(answer.files, answer.sinks, len(answer.warnings))
        self.warnings |= set(answer.warnings)
        self.files = answer.files
        self.states |= {each["state"] for each in answer.files}
        settled = frozenset((each["file"], each["size"]) for each in answer.files if is_settled(each))
        letters = self.letters()
        for each in self.applications:
            each.told = (self._arrived_to(each, letters), settled)

    def _arrived_to(self, application: Application, letters: set[str]) -> int:
        """Return up to which number all has arrived."""
        number = application.told[0]
        while (text := text_of(application.name, number + 1)) in self.sink.taken or text in letters:
            number += 1
        return number

    def letters(self) -> set[str]:
        """Return the texts among the dead letters."""
        found: set[str] = set()
        for path in (self.state / DEAD_LETTERS).glob("*"):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):  # torn
                    found.add(said(json.loads(line)["record"]))
        return found

    def arrived(self) -> set[str]:
        """Return what was delivered, or is a dead letter."""
        return self.sink.taken.keys() | self.letters()

    def missing(self) -> list[str]:
        arrived = self.arrived()
        return [text for each in self.applications for text in each.texts() if text not in arrived]

    async def kill(self, chance: random.Random, seconds: float) -> None:
        """Kill the collector some time within so many *seconds*, mostly of its work, sometimes of its start."""
        await until(lambda: self.collector.pid, "a collector")
        if chance.random() < 0.8:
            await until(lambda: not self.collector.missing(), "it collects")
        await asyncio.sleep(chance.random() * seconds)  # any moment
        deaths = self.forks.deaths
        os.kill(self.collector.pid, signal.SIGKILL)
        await until(lambda: self.forks.deaths > deaths, "it is dead")

    def total(self, name: str) -> float:
        """Return the sum of the series of a family that is exported."""
        text = b"".join(self.store.exposition()).decode()
        family = f"nodeagent_log_{name}"
        lines = (each for each in text.splitlines() if each.startswith((f"{family}{{", f"{family} ")))
        return sum(float(each.rpartition(" ")[2]) for each in lines)

    def unaccounted(self) -> float:
        """Return how many of the records that were offered are in none of the places where they may be."""
        places = sum(self.total(f"records_{place}_total") for place in SETTLED)
        return self.total("records_offered_total") - places - self.total("records_waiting")


@asynccontextmanager
async def collecting(root: Path, chance: random.Random, buffer: int = 64 << 20) -> AsyncIterator[Node]:
    """Have a node whose logs are collected; *buffer*: bytes on disk at most."""
    sink = MoodySink(random.Random(chance.random()))
    server = await sink.start()
    settings = LogSettings.model_validate(
        {
            "stateDirectory": str(root / "state"),
            "podLogs": str(root / "pods"),
            "podVolumes": str(root / "volumes"),
            "node": {"journal": {"folders": [str(root / "journal")]}},
            "sinks": [
                {
                    "name": "all",
                    "requestBytes": 1 << 16,
                    "elasticsearch": {"urls": [f"http://127.0.0.1:{sink.port}"], "index": "logs"},
                }
            ],
            "buffer": {"bytes": buffer},
        }
    )
    (root / "state").mkdir(exist_ok=True)
    store = Store()
    metrics = LogMetrics(store)
    metrics.follow([(POD.namespace, POD.name)])
    forks = Forks(root / "collector.log")
    start = StartCollector(settings.model_dump(mode="json", by_alias=True), "node1", os.getpid())
    collector = forks.collector = LogCollector(
        asyncio.get_running_loop(), forks, start, metrics.count, metrics.died, metrics.ended, stop_seconds=5
    )
    folders = LogFolders(root / "pods", root / "volumes", kubelet=False)
    finder = LogFinder(settings, folders, collector)
    applications = [
        Container(root / "pods" / f"shop_web_{POD.uid}" / "app" / "0.log", random.Random(chance.random())),
        Application(root / "volumes" / POD.uid / "data" / "app.log", random.Random(chance.random())),
        Journal(root / "journal" / ("0" * 32) / "system.journal", random.Random(chance.random())),
    ]
    node = Node(root, sink, applications, collector, forks, metrics, store)
    parts = Parts()
    finder.follow({POD.uid: POD})
    try:
        async with finder.run(parts), collector.run(parts, finder):
            yield node
    finally:
        collector.let_go()  # no other one
        await forks.end()
        parts.stop()
        server.close()
