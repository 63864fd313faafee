"""The agent's collector as a daemon has it, without a daemon: ``python -m nodeagent.compare.logs.agent FILES
FOLDER PORT plain|cri``. Tail, processing, delivery and sink are the collector's own; control's part, to
find and open files, is done here.

As a daemon does, it forks the collector from a process that has imported all of it; that one's memory
before the fork is written to ``FOLDER/idle``, in bytes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
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
from nodeagent.memory import keep_free, settle
from nodeagent.messages import LogFileOpened
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor

SINK: Final = "search"
DAEMON: Final = supervisor.__name__
"""Imported for its memory: what a daemon has before it forks a collector."""


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


async def collect(paths: Sequence[str], folder: Path, port: int, cri: bool) -> None:
    """Read *paths* and deliver them until SIGTERM comes."""
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
    for path, source in zip(paths, sources(paths, cri), strict=True):
        intake.source(source)
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(opened)
        intake.add(LogFileOpened(source.key, Path(path).name, found.st_dev, found.st_ino, 0, FileDescriptor(opened)))
    await done.wait()
    await intake.end(1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(files: str, folder: str, port: str, kind: str) -> int:
    """Fork the collector and wait for its end; SIGTERM is passed on. Returns its exit status."""
    settle()
    (Path(folder) / IDLE).write_text(str(measure.memory([os.getpid()])))
    child = os.fork()
    if child == 0:
        settle()
        keep_free(FREE_BYTES)
        uvloop.run(collect(sorted(glob(files)), Path(folder), int(port), kind == "cri"))
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
