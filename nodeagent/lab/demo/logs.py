"""What the agents have collected of the application's log: a line a page, from the frontend's standard output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.lab import Lab
from nodeagent.lab.demo.application import NAMESPACE

FRONTEND: Final = "frontend"
_WAIT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Collected:
    """Lines of one reader's pages."""

    written: int
    """By the frontend, as its node's files have them."""
    delivered: int
    """At the sink, each with the frontend's namespace, pod and container."""


def sink(name: str) -> Path:
    """Return the file to which the agents of the lab *name* deliver."""
    return Path("/run/nodeagent/lab") / name / "collected" / "logs.jsonl"


def settings(name: str) -> dict[str, object]:
    """Return what agent.yaml says of logs in the lab *name*."""
    return {"logs": {"sinks": [{"name": "file", "file": {"path": str(sink(name))}}]}}


def collected(lab: Lab, reader: str, expected: int) -> Collected:
    """Return what was collected of *reader*'s pages, waiting a moment for *expected* lines."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while (found := _count(lab, reader)).delivered < expected and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _count(lab: Lab, reader: str) -> Collected:
    pods = [pod["metadata"]["name"] for pod in lab.select(f"deploy/{FRONTEND}", NAMESPACE)]
    written = sum(lab.log(pod, NAMESPACE).count(reader) for pod in pods)
    whose = [(NAMESPACE, pod, FRONTEND) for pod in pods]
    return Collected(
        written, sum(_whose(record) in whose for record in _records(sink(lab.name)) if reader in str(record))
    )


def _whose(record: dict[str, object]) -> tuple[object, ...]:
    of = record.get("kubernetes")
    names = ("namespace_name", "pod_name", "container_name")
    return tuple(of.get(name) for name in names) if isinstance(of, dict) else ()


def _records(path: Path) -> Iterator[dict[str, object]]:
    with suppress(FileNotFoundError):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
