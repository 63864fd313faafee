"""The tables in the documents that are written from the code or from a result file, and how the
documents are read.

usage: python -m tests.documents      rewrites README.md and what stands in TABLES (`make documents`)

Between ``<!-- NAME: written by ... -->`` and ``<!-- /NAME -->`` of a document stands what
:data:`TABLES` makes of the sources; ``tests/unit/test_documents.py`` compares the two.
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent import errors
from nodeagent.errors import Reason
from nodeagent.redirect import rights
from nodeagent.telemetry import metrics
from tests.vm import kernels

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "docs" / "results" / "bench.json"
"""The one run that the README's table tells of: the JSON object of ``nodeagent compare``."""
LOG_RESULTS: Final = RESULTS.with_name("logs.json")
"""That of docs/comparison.md: of ``nodeagent compare --logs``."""
Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the README's table: *figure* of a workload, of ours against both others."""

    words: str
    workload: str
    connections: int
    figure: str
    """``p50``, ``p99``, or ``rate``: requests or bits a second."""
    encrypted: str
    """Which of the two encrypts what is on the way; no mesh never does."""
    mode: str = "nodeagent"


SAME_NODE: Final = "Envoy's pair"
BETWEEN_NODES: Final = "both"
ROWS: Final = (
    Row("one node: a request at a time, p50", "http", 1, "p50", SAME_NODE),
    Row("one node: 32 connections, requests/s", "http", 32, "rate", SAME_NODE),
    Row("one node: a new connection for each request, requests/s", "tcp-churn", 32, "rate", SAME_NODE),
    Row("one node: a request through five services, p50", "chain5", 1, "p50", SAME_NODE),
    Row("the same by the kernel path, p50", "chain5", 1, "p50", SAME_NODE, "nodeagent-kernel"),
    Row("one node: TCP stream, bits/s", "bulk", 1, "rate", SAME_NODE),
    Row("one node: HTTP/2, 32 streams, requests/s", "h2", 1, "rate", SAME_NODE),
    Row("one node: gRPC, 32 calls at a time, calls/s", "grpc", 1, "rate", SAME_NODE),
    Row("between nodes: a request at a time, p50", "cross-node", 1, "p50", BETWEEN_NODES),
    Row("between nodes: 32 connections, requests/s", "cross-node", 32, "rate", BETWEEN_NODES),
    Row("between nodes: a new connection for each request, requests/s", "cross-node-churn", 32, "rate", BETWEEN_NODES),
    Row("between nodes: TCP stream, bits/s", "bulk-cross-node", 1, "rate", BETWEEN_NODES),
)


def figures() -> Iterator[str]:
    """Yield the lines of the README's table from RESULTS; without that file it says how to make it."""
    if not RESULTS.exists():
        yield "No run is kept yet: [how to keep one](docs/comparison.md#what-this-project-holds-itself-to)."
        return
    summary = json.loads(RESULTS.read_text(encoding="utf-8"))
    yield from _where(summary["environment"])
    yield ""
    yield "| agent | against Envoy's pair | against no mesh | encrypted by |"
    yield "| --- | --- | --- | --- |"
    for row in ROWS:
        ours = _rounds(summary, row.mode, row)
        ratios = [_ratio(ours, _rounds(summary, other, row)) for other in ("envoy", "direct")]
        if any(ratios):
            yield f"| {row.words} | {' | '.join(ratios)} | {row.encrypted} |"
    yield from _idle(summary["scale"])


def _where(environment: Mapping[str, Any]) -> list[str]:
    compiled = "" if environment["compiled"] else ", modules not compiled"
    words = (
        f"One run of `make bench` ([its file](docs/results/bench.json)), {environment['date'][:10]}: "
        f"{environment['cpu']}, {environment['cores']} cores, Linux {environment['kernel']}, Python "
        f"{environment['python']}{compiled}, Envoy {environment['envoy']}; {environment['rounds']} rounds, ratios "
        "round by round, their median. Within a node the agent encrypts nothing: the kernel says who is who."
    )
    return textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False)


def _rounds(summary: Mapping[str, Any], mode: str, row: Row) -> Sequence[float]:
    """Return *row*'s figure of *mode* in each round; empty: it was not measured."""
    for run in summary["runs"]:
        same = (run["mode"], run["variant"], run["workload"]) == (mode, "", row.workload)
        if same and run["connections"] == row.connections and run["load"] == "closed":
            found: Sequence[float] = run["rounds"] if row.figure == "rate" else run["latency_rounds_us"][row.figure]
            return found
    return ()


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
    return f"{statistics.median(ratios):.2f} ×" if ratios else ""


def _idle(scale: Sequence[Run]) -> Iterator[str]:
    """Yield the row of the largest node full of pods that do nothing."""
    most = max((each["pods"] for each in scale), default=0)
    found = {each["mode"]: each for each in scale if each["pods"] == most}
    if "nodeagent" in found and "envoy" in found:
        agent, envoy = (each["memory_bytes"] for each in (found["nodeagent"], found["envoy"]))
        ratio = f"{agent / envoy:.3f} × ({agent >> 20:,} MB for {envoy >> 20:,} MB)"
        yield f"| {most} idle pods: memory of all proxies | {ratio} | | |"


def logs() -> Iterator[str]:
    """Yield the table of LOG_RESULTS: logs beside other shippers, and what they do to the proxy."""
    summary = json.loads(LOG_RESULTS.read_text(encoding="utf-8"))
    where = summary["environment"]
    yield f"Of [one run](results/logs.json), {where['date'][:10]}: {where['rounds']} rounds, the median of them."
    yield ""
    rows = {name: ratio for name, ratio in summary["ratios"].items() if name.startswith("logs") or "log load" in name}
    yield "| figure | must | aim | measured |"
    yield "| --- | --- | --- | --- |"
    for name, ratio in rows.items():
        sign = "≥" if ratio["better"] == "more" else "≤"
        limits = [f"{sign} {limit:g} {ratio['unit']}" if limit else "" for limit in (ratio["must"], ratio["aim"])]
        yield f"| {name} | {' | '.join(limits)} | {ratio['value']:.3g} {ratio['unit']} |"


def reasons() -> Iterator[str]:
    """Yield the table of every Reason in nodeagent/errors.py, in that file's order."""
    yield "| reason | status | flag | in `flows` | likely cause and next step |"
    yield "| --- | --- | --- | --- | --- |"
    for reason in (value for value in vars(errors).values() if isinstance(value, Reason)):
        verdict = "deny" if reason.denies else "error"
        hint = reason.hint.replace("|", "\\|")
        yield f"| `{reason.code}` | {reason.status} | {reason.flag} | {verdict} | {hint} |"


def families() -> Iterator[str]:
    """Yield the table of every metric in nodeagent/telemetry/metrics.py, in that file's order."""
    yield "| metric | kind | labels | what it says |"
    yield "| --- | --- | --- | --- |"
    for metric in (value for value in vars(metrics).values() if isinstance(value, metrics.Metric)):
        labels = "Istio's" if metric.labels[:1] == ("reporter",) else ", ".join(metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def capabilities() -> Iterator[str]:
    """Yield the table of nodeagent/redirect/rights.py: RIGHTS and LOG_RIGHTS, in that file's order."""
    yield "| capability | for | lost without it |"
    yield "| --- | --- | --- |"
    for right in (*rights.RIGHTS, *rights.LOG_RIGHTS):
        yield f"| {right.name} | {right.use} | {right.lost} |"


def linuxes() -> Iterator[str]:
    """Yield the table of tests/vm/kernels/: a kernel a row, and the words of the check for what it has not."""
    found = list(kernels.kept())
    if not found:
        yield "No kernel is kept yet: `make vm-kernels` tries Debian's."
        return
    yield "| Linux | the agent | what `nodeagent check` does not find, and what is lost |"
    yield "| --- | --- | --- |"
    for kernel in found:
        verdict = "is refused" if kernel.missing else "works"
        lacking = [each for each in kernel.findings if each["state"] != "ok"]
        words = [f"{each['feature']} ({each['detail']}): {each['lost']}".replace("|", "\\|") for each in lacking]
        yield f"| {kernel.release} ({kernel.suite}) | {verdict} | {'; '.join(words)} |"


TABLES: Final[Sequence[tuple[str, str, Callable[[], Iterator[str]]]]] = (
    ("README.md", "figures", figures),
    ("docs/comparison.md", "logs", logs),
    ("docs/operations.md", "reasons", reasons),
    ("docs/operations.md", "metrics", families),
    ("docs/kubernetes.md", "rights", capabilities),
    ("docs/vm.md", "kernels", linuxes),
)
"""Document, the marker's name, what stands between the markers."""


def between(text: str, name: str) -> str:
    """Return what stands between the markers *name* of a document's *text*. Raises ValueError when
    they are not there.
    """
    return _marked(text, name)[2]


def with_table(text: str, name: str, table: str) -> str:
    """Return *text* with *table* between its markers *name*. Raises ValueError when they are not there."""
    begin, end, _ = _marked(text, name)
    return f"{text[:begin]}{table}{text[end:]}"


def _marked(text: str, name: str) -> tuple[int, int, str]:
    found = re.search(rf"(?<=<!-- {name}: written by `make documents` -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the markers {name} are not in the document")
    return found.start(), found.end(), found[0]


def written(make: Callable[[], Iterator[str]]) -> str:
    """Return the table that *make* yields as it stands in a document."""
    return "\n" + "\n".join(make()) + "\n\n"


def main() -> None:
    for document, name, make in TABLES:
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        path.write_text(with_table(text, name, written(make)), encoding="utf-8")


if __name__ == "__main__":
    main()
