"""What a scrape gets: the same as prometheus_client alone would write, in both formats, as the
client prefers.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

import pytest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.registry import Collector

from nodeagent.telemetry import metrics
from nodeagent.telemetry.exposition import PIECE_BYTES, SLICE_SAMPLES, WRITERS, HistogramMetricFamily, family_of
from nodeagent.telemetry.formats import FORMATS, OPENMETRICS, TEXT, Format
from nodeagent.telemetry.http_server import Response, ServerLimits, serve
from nodeagent.telemetry.metrics import (
    BUCKETS,
    HTTP_FAMILIES,
    MESSAGE_FAMILIES,
    REQUESTS,
    TCP_FAMILIES,
    Labels,
    Metric,
)
from nodeagent.telemetry.negotiation import ACCEPT_BYTES, ACCEPT_RANGES, Variant, _Media, _Range, preferred
from nodeagent.telemetry.scrapes import answer
from nodeagent.telemetry.store import Store

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
PROMETHEUS_2_42_HISTOGRAMS = (
    f"{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""With its feature native-histograms, as the next one."""
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_HISTOGRAMS = (
    f"{PROTOBUF};q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
CURL = "*/*"
ONLY_OPENMETRICS = "application/openmetrics-text"
COUNTERS = {"tcp": TCP_FAMILIES, "messages": MESSAGE_FAMILIES}
PAIRS = 300
"""Sets of labels: with all their buckets more than 20,000 lines."""
NUMBERS = random.Random(7)
NASTY = 'a"b\\c\nd é 漢,le="1"}'


class Alone(Collector):
    """What the store of :func:`filled` holds, given to the library without any code of ours between."""

    def __init__(self, reports: Mapping[str, list[object]], bounds: Labels, plain: Iterable[tuple[Metric, Labels]]):
        self._reports = reports
        self._bounds = bounds
        self._plain = plain

    def collect(self) -> Iterator[Family]:
        requests = family_of(REQUESTS)
        histograms = [family_of(metric) for metric in HTTP_FAMILIES]
        for _, labels, values in self._reports["http"]:
            series = ("destination", *labels)
            requests.add_metric(series, sum(count for _, count in values[0][0]))  # type: ignore[call-arg]
            for family, (pairs, total) in zip(histograms, values, strict=True):
                counts = [0] * len(self._bounds)
                for index, count in pairs:
                    counts[index] += count
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(series, list(zip(self._bounds, accumulate(counts), strict=True)), total)
        yield from (requests, *histograms)
        for kind, families in COUNTERS.items():
            for place, metric in enumerate(families):
                family = family_of(metric)
                for _, labels, amounts in self._reports[kind]:
                    family.add_metric(("destination", *labels), amounts[place])  # type: ignore[call-arg]
                yield family
        by_name: dict[str, Family] = {}
        for metric, labels in self._plain:
            by_name.setdefault(metric.name, family_of(metric)).add_metric(labels, len(labels) + 0.25)
        yield from by_name.values()


def labels_of(number: int, count: int) -> list[str]:
    return [f"{NASTY if number == 1 else 'value'} {number} {place}" for place in range(count)]


def filled() -> tuple[Store, dict[str, list[object]], list[tuple[Metric, Labels]]]:
    """Return a store with thousands of series, what was reported to it, and what was set in it."""
    reports: dict[str, list[object]] = {"http": [], "tcp": [], "messages": []}
    for number in range(PAIRS):
        histograms = [
            [[[NUMBERS.randrange(len(BUCKETS) + 1), NUMBERS.randrange(3_000_000)] for _ in range(3)], total]
            for total in (0.0, 12.5, 12_345_678.75)
        ]
        reports["http"].append([["destination"], labels_of(number, len(metrics.HTTP_LABELS)), histograms])
        for kind, families in COUNTERS.items():
            amounts = [NUMBERS.randrange(10 ** (4 * place + 1)) for place in range(len(families))]
            names = families[0].labels[1:]
            reports[kind].append([["destination"], labels_of(number, len(names)), amounts])
    store = Store()
    store.merge(reports)
    plain = [(metric, tuple("x" for _ in metric.labels)) for metric in metrics.PLAIN.values()]
    repairs = [(metrics.REPAIRS, (f"{NASTY} {number}",)) for number in range(3 * SLICE_SAMPLES)]
    place = plain.index((metrics.REPAIRS, ("x",)))
    plain[place : place + 1] = repairs
    for metric, labels in plain:
        store.set(metric, labels, len(labels) + 0.25)
    return store, reports, plain


@pytest.mark.parametrize("wanted", FORMATS, ids=["text", "OpenMetrics"])
def test_it_is_what_the_library_alone_would_write(wanted: Format) -> None:
    store, reports, plain = filled()
    pieces = list(store.exposition(wanted))
    writer = WRITERS[wanted]
    expected = writer.write(Alone(reports, writer.bounds, plain))
    assert b"".join(pieces) == expected
    assert expected.count(b"\n") > 20_000
    assert max(map(len, pieces)) < 2 * PIECE_BYTES


def test_openmetrics_is_what_its_strict_reader_takes() -> None:
    store, _, _ = filled()
    text = b"".join(store.exposition(OPENMETRICS)).decode()
    found = {family.name: family for family in openmetrics_families(text)}
    assert {"istio_requests", "istio_request_bytes", "istio_tcp_sent_bytes"} <= found.keys()
    assert found["nodeagent_repairs"].type == "counter"
    assert any(NASTY in sample.labels["fault"] for sample in found["nodeagent_repairs"].samples)
    assert [sample.labels["le"] for sample in found["istio_request_bytes"].samples[:3]] == ["0.5", "1.0", "5.0"]


def test_the_text_keeps_the_bounds_that_dashboards_know() -> None:
    bounds = WRITERS[TEXT].bounds
    assert bounds[:5] == ("0.5", "1", "5", "10", "25")
    assert bounds[-3:] == ("1800000", "3600000", "+Inf")
    assert all(float(one) < float(next_one) for one, next_one in pairwise(bounds))


def test_the_content_types_are_the_librarys() -> None:
    assert TEXT.content_type == CONTENT_TYPE_PLAIN_0_0_4
    assert OPENMETRICS.content_type == CONTENT_TYPE_LATEST


def test_the_library_is_not_there_before_the_first_scrape() -> None:
    """Input: all that the daemon imports before it forks. Verdict: prometheus_client and pyroute2,
    which cost megabytes, are not among it.
    """
    code = "import sys, nodeagent.agent; print(*{'prometheus_client', 'pyroute2', 'bcc'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


async def _nothing() -> bytes:
    return b""


@pytest.mark.parametrize(
    ("accept", "wanted"),
    {
        "": TEXT,
        CURL: TEXT,
        "text/*": TEXT,
        "text/plain;version=0.0.4": TEXT,
        PROMETHEUS_2_42: TEXT,
        PROMETHEUS_2_42_HISTOGRAMS: TEXT,
        PROMETHEUS_3: TEXT,
        PROMETHEUS_3_HISTOGRAMS: TEXT,
        ONLY_OPENMETRICS: OPENMETRICS,
        "Application/OpenMetrics-Text ; Version=1.0.0; q=0.9": OPENMETRICS,
        'application/openmetrics-text;version="1.0.0";escaping=underscores': OPENMETRICS,
        "application/openmetrics-text, text/plain;q=0.001": TEXT,
        "application/openmetrics-text, */*;q=0.001": TEXT,
        "application/openmetrics-text, text/*;q=0, */*": OPENMETRICS,
        "application/*": OPENMETRICS,
        "text/plain;q=0, */*": OPENMETRICS,
        "text/plain;version=0.0.4;q=0, text/plain, application/openmetrics-text;q=0.1": OPENMETRICS,
        "*/*;q=0": TEXT,
        "application/openmetrics-text;version=2.0.0, text/plain;q=0.1": TEXT,
        "application/openmetrics-text;q=nan, text/plain;q=0.1": TEXT,
        "application/openmetrics-text;q=7, text/plain;q=0.1": TEXT,
        "application/json": TEXT,
        ",;,q=": TEXT,
        ONLY_OPENMETRICS + " " * (ACCEPT_BYTES - len(ONLY_OPENMETRICS)): OPENMETRICS,
        ONLY_OPENMETRICS + " " * (ACCEPT_BYTES - len(ONLY_OPENMETRICS) + 1): TEXT,
        ONLY_OPENMETRICS + ",a" * (ACCEPT_RANGES - 1): OPENMETRICS,
        ONLY_OPENMETRICS + ",a" * ACCEPT_RANGES: TEXT,
    }.items(),
)
def test_who_prefers_what_gets_it(accept: str, wanted: Format) -> None:
    variants = [Variant(each.content_type, _nothing) for each in FORMATS]
    assert preferred(accept, variants).content_type == wanted.content_type


@pytest.mark.parametrize("unit", ["a,", ";,", "a;b,", "*/*,", ";a=b"])
def test_what_a_header_costs_is_bounded(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: headers as large as a head may be. Verdict: nothing of them is parsed."""
    parsed: list[str] = []
    monkeypatch.setattr(_Range, "parse", parsed.append)
    variants = [Variant(each.content_type, _nothing) for each in FORMATS]
    size = ServerLimits().head_bytes - 100
    assert preferred(unit * (size // len(unit)), variants).content_type == TEXT.content_type
    assert parsed == []


def test_a_type_of_the_servers_own_is_read_once_and_a_range_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    parse = _Media.parse

    def counted(text: str) -> _Media:
        read.append(text)
        return parse(text)

    variants = [Variant(each.content_type, _nothing) for each in FORMATS]
    preferred(ONLY_OPENMETRICS, variants)
    monkeypatch.setattr(_Media, "parse", counted)
    preferred(PROMETHEUS_3_HISTOGRAMS, variants)
    assert read == PROMETHEUS_3_HISTOGRAMS.split(",")


async def _ask(accept: str | None) -> tuple[str | None, str | None, bytes]:
    store = Store()
    store.set(metrics.ENROLLED_PODS, (), 3)

    async def rendered(wanted: Format) -> Iterator[bytes]:
        return store.exposition(wanted)

    async def scraped(query: Mapping[str, str]) -> Response:
        return answer(rendered)

    server = await serve({("GET", "/metrics"): scraped})
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": accept} if accept else {}
    )

    def read() -> tuple[str | None, str | None, bytes]:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.headers["Content-Type"], response.headers["Vary"], response.read()

    try:
        return await asyncio.to_thread(read)
    finally:
        await server.close()


def test_the_server_answers_in_the_format_that_was_asked_for() -> None:
    kind, vary, text = asyncio.run(_ask(None))
    assert (kind, vary) == ("text/plain; version=0.0.4; charset=utf-8", "Accept")
    assert text.endswith(b"nodeagent_enrolled_pods 3.0\n")
    kind, vary, text = asyncio.run(_ask("application/openmetrics-text"))
    assert (kind, vary) == ("application/openmetrics-text; version=1.0.0; charset=utf-8", "Accept")
    assert text.endswith(b"nodeagent_enrolled_pods 3.0\n# EOF\n")
