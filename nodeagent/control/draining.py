"""What a daemon that was succeeded still waits for: in its log, and where its successor, which people ask,
finds it (``/ready``).

It is told by a file in the runtime directory, which both have, and whose flock(2) says that the
daemon lives: whoever finds one without removes it. A daemon of an earlier release writes none.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nodeagent.control.flows import AsksWorkers, FlowRow
from nodeagent.mesh.entries import Entry, Workload
from nodeagent.messages import AskFlows

TELL_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 2.0
"""After an answer with nothing open: a worker may have been too busy, at the hand-over of all times, to answer."""
NAMED: Final = 10
"""Pods that one line names."""
NOTE: Final = "draining-"
"""How the files' names begin; what is still being made has a dot before."""
NOTE_BYTES: Final = 4096
log = logging.getLogger("nodeagent.control")


async def tell_what_is_open(
    workers: AsksWorkers, known: Callable[[], Mapping[str, Entry]], seconds: float, note: Callable[[str], None]
) -> None:
    """Say at once and then every minute, for ever, to the log and to *note*, which connections of *workers* are
    open, by pod, as *known* (the snapshot by key) names them; *seconds*: how long they may all go on. As long as
    no worker says that anything is open, they are asked more often.
    """
    end = time.time() + seconds
    until = time.strftime("%H:%M:%S", time.gmtime(end))
    while True:
        words = still_open(await workers.ask(AskFlows), known(), time.time())
        note(f"until its last connection ends, at the latest {until} UTC: {words or 'none that its workers tell of'}")
        if words:
            log.info("this daemon ends when what is open has ended, at the latest at %s UTC: %s", until, words)
        await asyncio.sleep(TELL_SECONDS if words else AGAIN_SECONDS)


def still_open(rows: Iterable[FlowRow], known: Mapping[str, Entry], now: float) -> str:
    """Return in words which connections of *rows* (``nodeagent flows``) are open at *now* (Unix time), by pod, those
    with the most first; empty: none is.
    """
    opened: dict[str, list[float]] = {}
    for row in rows:
        if not row["closed"]:
            opened.setdefault(str(row["pod"]), []).append(float(row["opened"]))
    most_first = sorted(opened.items(), key=lambda each: (-len(each[1]), each[0]))
    told = [f"{_name(known, uid)} {len(times)} (for {now - min(times):.0f} s)" for uid, times in most_first[:NAMED]]
    if len(opened) > NAMED:
        told.append(f"{len(opened) - NAMED} more pods {sum(len(times) for _, times in most_first[NAMED:])}")
    return ", ".join(told)


def _name(known: Mapping[str, Entry], uid: str) -> str:
    found = known.get(f"workload/{uid}")
    return f"{found.namespace}/{found.pod}" if isinstance(found, Workload) else f"pod {uid}"


@contextmanager
def noted(folder: Path) -> Iterator[Callable[[str], None]]:
    """Within, the daemons of *folder* can read what the yielded function was told last. Where no file can be had
    it does nothing.
    """
    try:
        descriptor, path = _begun(folder)
    except OSError as error:
        log.warning("%s: the daemon that took over cannot be told of the drain: %s", folder, error.strerror)
        yield lambda words: None
        return

    def note(words: str) -> None:
        data = words.encode()[:NOTE_BYTES]
        with suppress(OSError):  # a full file system is no reason to end
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))

    try:
        yield note
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _begun(folder: Path) -> tuple[int, Path]:
    """Return a new file that is locked before it has a name by which it is looked for. Raises OSError."""
    descriptor, made = tempfile.mkstemp(prefix=f".{NOTE}", dir=folder)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path = Path(made)
    return descriptor, path.rename(folder / path.name.removeprefix("."))


def drains_beside(folder: Path) -> list[str]:
    """Return, in words, which daemons drain beside this one, and what they wait for."""
    found: list[str] = []
    with suppress(OSError):
        for path in sorted(folder.glob(f"{NOTE}*")):
            with suppress(OSError):
                found += _read(path)
    return found


def _read(path: Path) -> Iterator[str]:
    """Yield what the file says whose daemon lives. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        words = os.read(descriptor, NOTE_BYTES).decode(errors="replace")
        yield f"an earlier daemon is there beside this one {words}"
    else:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
