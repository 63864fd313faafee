"""Where the CPU of a line goes, without a file and without a sink: ``python -m nodeagent.compare.logs.micro``
prints what processing and encoding take, in nanoseconds a line, by kind of line.

The lowest of many turns of CPU time counts: it is what a quiet machine takes, nearly, on a busy one too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.compare.logs.lines import line
from nodeagent.compare.logs.shippers import FIELDS
from nodeagent.logs.collector import FREE_BYTES
from nodeagent.logs.process.origin import OriginFacts, make_origin
from nodeagent.logs.process.processor import ProcessCounts, Processor, Recipe
from nodeagent.logs.records import Chunk
from nodeagent.logs.sinks.elasticsearch import ElasticsearchSink
from nodeagent.logs.sinks.settings import ElasticsearchSettings
from nodeagent.memory import keep_free
from nodeagent.vocabulary import PodUid

CHUNK_LINES: Final = 1250
"""As many as the tail reads at once."""
TURNS: Final = 100


@dataclass(frozen=True, slots=True)
class LineCost:
    """Nanoseconds of CPU that a line takes."""

    kind: str
    process: float
    encode: float


def line_costs(turns: int = TURNS) -> Iterator[LineCost]:
    """Yield what lines of each kind cost, the lowest of so many *turns*."""
    numbers = range(CHUNK_LINES)
    plain = b"".join(line(number, "plain") for number in numbers)
    cri = b"".join(line(number, "cri") for number in numbers)
    yield _measured("plain: JSON", Recipe("plain"), plain, turns)
    yield _measured("plain: text", Recipe("plain"), plain.replace(b"{", b"<"), turns)
    yield _measured("cri: JSON", Recipe("cri"), cri, turns)
    yield _measured("cri: text", Recipe("cri"), cri.replace(b"{", b"<"), turns)
    yield _measured("cri: JSON and text", Recipe("cri"), cri.replace(b"{", b"<", CHUNK_LINES // 2), turns)


def _measured(kind: str, recipe: Recipe, data: bytes, turns: int) -> LineCost:
    facts = OriginFacts(
        uid=PodUid(FIELDS["pod_id"]),
        namespace=FIELDS["namespace_name"],
        pod=FIELDS["pod_name"],
        container=FIELDS["container_name"],
        path="",
        node=FIELDS["host"],
        labels={},
    )
    told = {"urls": ["http://127.0.0.1:9200"], "index": "app-logs", "gzip": False}
    settings = ElasticsearchSettings.model_validate(told)
    sink = ElasticsearchSink("search", settings, 10.0)
    processor = Processor(make_origin(facts, "kube", ("search",)), recipe, ProcessCounts())
    chunk = Chunk(b"f" * 22, 0, data)
    records = processor.feed(chunk, 0.0)
    return LineCost(
        kind,
        _lowest(lambda: processor.feed(chunk, 0.0), turns) / len(records),
        _lowest(lambda: sink.encode([records]), turns) / len(records),
    )


def _lowest(work: Callable[[], object], turns: int) -> float:
    """Return the lowest CPU time that *work* takes, in nanoseconds."""
    found: list[int] = []
    for _ in range(turns):
        before = time.thread_time_ns()
        work()
        found.append(time.thread_time_ns() - before)
    return min(found)


if __name__ == "__main__":
    keep_free(FREE_BYTES)  # as the collector does
    for cost in line_costs():
        print(f"{cost.kind:20} process {cost.process:6.0f} ns   encode {cost.encode:6.0f} ns")
