"""The agent's collector as a daemon has it, without a daemon: ``python -m nodeagent.compare.logs.agent FILES
FOLDER PORT plain|cri [FORGET]``. Tail, processing, delivery and sink are the collector's own; control's part, to
find and open files, is done here. With FORGET files that come and go later are followed, and forgotten after so
many seconds.

As a daemon does, it forks the collector from a process that has imported all of it; that one's memory
before the fork is written to ``FOLDER/idle``, in bytes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Final

import uvloop

from nodeagent import supervisor
from nodeagent.compare import measure
from nodeagent.compare.logs.shippers import FIELDS, IDLE
from nodeagent.logs.collector import FREE_BYTES, Intake
from nodeagent.logs.priority import give_way
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.memory import give_back, keep_free, settle
from nodeagent.messages import LogFileOpened
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor

SINK: Final = "search"
DAEMON: Final = supervisor.__name__
"""Imported for its memory: what a daemon has before it forks a collector."""
_LOOK_SECONDS: Final = 0.1


def sources(paths: Sequence[str], cri: bool) -> list[SourceFacts]:
    """Return what control would tell of *paths*, each a log of one pod."""
    return [
        SourceFacts(
            key=f"{FIELDS['pod_id']}/{Path(path).name}",
            kind="output" if cri else "file",
            uid=PodUid(FIELDS["pod_id"]),
            namespace=FIELDS["namespace_name"],
            pod=FIELDS["pod_name"],
            container=FIELDS["container_name"],
            path="",
            reading=Reading(sinks=(SINK,)),
        )
        for path in paths
    ]


async def collect(files: str, folder: Path, port: int, cri: bool, forget: float | None) -> None:
    """Read *files* and deliver them until SIGTERM comes."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    sink = {"urls": [f"http://127.0.0.1:{port}"], "index": "app-logs", "gzip": False}
    told = {"stateDirectory": str(folder), "sinks": [{"name": SINK, "elasticsearch": sink}]}
    intake = Intake(LogSettings.model_validate(told), FIELDS["host"])
    tasks: set[asyncio.Task[None]] = set()

    def start(coroutine: Coroutine[object, object, None]) -> None:
        tasks.add(loop.create_task(coroutine))

    intake.begin(start)
    files_there = FilesThere(intake, files, cri)
    files_there.look()
    if forget is not None:
        start(follow(intake, files_there, forget))
    await done.wait()
    await intake.end(1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class FilesThere:
    """The files of a pattern, each handed over once, whenever it comes."""

    def __init__(self, intake: Intake, files: str, cri: bool) -> None:
        self._intake = intake
        self._files = files
        self._cri = cri
        self._known: set[str] = set()

    def look(self) -> None:
        """Have what has come since the last look read, and what has gone told."""
        now = set(glob(self._files))
        self._hand_over(sorted(now - self._known))
        for gone in sources(sorted(self._known - now), self._cri):
            self._intake.source_gone(gone.key, left_out=False)
        self._known = now

    def _hand_over(self, paths: Sequence[str]) -> None:
        for path, source in zip(paths, sources(paths, self._cri), strict=True):
            self._intake.source(source)
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(opened)
            file = FileDescriptor(opened)
            self._intake.add(LogFileOpened(source.key, Path(path).name, found.st_dev, found.st_ino, 0, file))


async def follow(intake: Intake, files: FilesThere, forget: float) -> None:
    """Look for what comes of *files*, and do of a collector's upkeep what is done for what goes."""
    intake.tail.settings = replace(intake.tail.settings, rotated_seconds=forget, forget_seconds=forget)
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        files.look()
        intake.counted()
        intake.tail.closed()
        intake.forget()
        give_back()


def main(files: str, folder: str, port: str, kind: str, forget: str = "") -> int:
    """Fork the collector and wait for its end; SIGTERM is passed on. Returns its exit status."""
    settle()
    (Path(folder) / IDLE).write_text(str(measure.memory([os.getpid()])))
    child = os.fork()
    if child == 0:
        give_way()
        settle()
        keep_free(FREE_BYTES)
        seconds = float(forget) if forget else None
        uvloop.run(collect(files, Path(folder), int(port), kind == "cri", seconds))
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
