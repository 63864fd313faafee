"""What a daemon that was succeeded still waits for, in its log: whoever waits for its end can tell why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from nodeagent.control.flows import AsksWorkers, FlowRow
from nodeagent.mesh.entries import Entry, Workload
from nodeagent.messages import AskFlows

TELL_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 2.0
"""After an answer with nothing open: a worker may have been too busy, at the hand-over of all times, to answer."""
NAMED: Final = 10
"""Pods that one line names."""
log = logging.getLogger("nodeagent.control")


async def tell_what_is_open(workers: AsksWorkers, known: Callable[[], Mapping[str, Entry]], seconds: float) -> None:
    """Say at once and then every minute, for ever, which connections of *workers* are open, by pod, as *known*
    (the snapshot by key) names them; *seconds*: how long they may all go on. As long as no worker says that
    anything is open, they are asked more often.
    """
    end = time.time() + seconds
    while True:
        words = still_open(await workers.ask(AskFlows), known(), time.time())
        if words:
            until = time.strftime("%H:%M:%S", time.gmtime(end))
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
