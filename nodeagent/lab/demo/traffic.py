"""Requests from a pod of the application: visitor.py run there, and what it tells."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from nodeagent.errors import LabError
from nodeagent.lab import Lab
from nodeagent.lab.demo.application import MEASURED, NAMESPACE, PAGE, VISITOR

_TIMEOUT_SECONDS = 30.0
REQUESTS_PER_CONNECTION = 10
ROUNDS = 6
REQUESTS_PER_ROUND = 100


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of requests for one URL."""

    milliseconds: tuple[float, ...] = ()
    """Of each request that was answered."""
    versions: Counter[str] = field(default_factory=Counter)
    """Answers by the version of reviews that took part."""
    failures: tuple[str, ...] = ()

    def __add__(self, other: Visit) -> Visit:
        return Visit(
            self.milliseconds + other.milliseconds, self.versions + other.versions, self.failures + other.failures
        )

    def percentile(self, percent: int) -> float:
        """Return milliseconds that *percent* of the requests took at most; raises LabError when there are none."""
        if len(self.milliseconds) < 2:
            raise LabError(f"nothing to measure: {self.failures[:1]}")
        return statistics.quantiles(self.milliseconds, n=100)[percent - 1]


@dataclass(frozen=True, slots=True)
class Latency:
    """One way measured without and with agents, in turn."""

    what: str
    direct: Visit
    agent: Visit


def visit(lab: Lab, reader: str, count: int) -> Visit:
    """Ask for *count* pages as *reader*, each few over a new connection. Raises LabError if the visitor cannot run."""
    return _run(lab, reader, count, REQUESTS_PER_CONNECTION, [PAGE])[PAGE]


def measure(direct: Lab, agent: Lab, reader: str) -> tuple[Latency, ...]:
    """Measure latency over one connection at a time, both labs in turn, so that what disturbs the
    machine disturbs both.
    """
    sums = {(name, url): Visit() for name, url in product((direct.name, agent.name), MEASURED)}
    for turn in range(ROUNDS):
        for lab in (direct, agent) if turn % 2 == 0 else (agent, direct):
            for url, told in _run(lab, reader, REQUESTS_PER_ROUND, REQUESTS_PER_ROUND, list(MEASURED)).items():
                sums[lab.name, url] += told
    return tuple(Latency(what, sums[direct.name, url], sums[agent.name, url]) for url, what in MEASURED.items())


def _run(lab: Lab, reader: str, count: int, per_connection: int, urls: Sequence[str]) -> dict[str, Visit]:
    argv = ["python3", "/app/visitor.py", reader, str(count), str(per_connection), *urls]
    try:
        done = lab.exec(VISITOR, argv, NAMESPACE, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{count} requests from {NAMESPACE}/{VISITOR} in lab {lab.name} were not answered within "
            f"{_TIMEOUT_SECONDS:g} s"
        ) from None
    if done.returncode:
        raise LabError(
            f"visitor.py in {NAMESPACE}/{VISITOR} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    told = json.loads(done.stdout)
    return {
        url: Visit(tuple(each["milliseconds"]), Counter(each["versions"]), tuple(each["failures"]))
        for url, each in told.items()
    }
