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
    hand_over(intake, sorted(glob(files)), cri)
    if forget is not None:
        start(follow(intake, files, cri, forget))
    await done.wait()
    await intake.end(1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def hand_over(intake: Intake, paths: Sequence[str], cri: bool) -> None:
    """Have *paths* read."""
    for path, source in zip(paths, sources(paths, cri), strict=True):
        intake.source(source)
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(opened)
        intake.add(LogFileOpened(source.key, Path(path).name, found.st_dev, found.st_ino, 0, FileDescriptor(opened)))


async def follow(intake: Intake, files: str, cri: bool, forget: float) -> None:
    """Hand over what comes of *files*, and do of a collector's upkeep what is done for what goes."""
    intake.tail.settings = replace(intake.tail.settings, rotated_seconds=forget, forget_seconds=forget)
    there = set(glob(files))
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = set(glob(files))
        hand_over(intake, sorted(now - there), cri)
        for gone in sources(sorted(there - now), cri):
            intake.source_gone(gone.key, left_out=False)
        there = now
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
