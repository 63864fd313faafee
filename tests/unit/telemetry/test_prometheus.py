"""A real Prometheus scrapes the daemon's metrics server, and answers what a dashboard of Istio's asks."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nodeagent.mesh.entries import Service, Workload
from nodeagent.telemetry import labels, metrics
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.formats import Format
from nodeagent.telemetry.http_server import EVERYWHERE, Response, serve
from nodeagent.telemetry.scrapes import answer
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Address, PodUid, SpiffeId
from tests import waiting
from tests.waiting import DEADLINE, LOOK_SECONDS

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: nodeagent
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
LISTENS = re.compile(r'msg="Listening on" address=127\.0\.0\.1:(\d+)')
WORKLOAD = Workload(
    *(
        PodUid("1"),
        "reviews-v1-x",
        "default",
        "node1",
        (Address("10.0.0.1"),),
        "reviews",
        SpiffeId("spiffe://cluster.local/ns/default/sa/reviews"),
    ),
    *("reviews-v1", "reviews", "v1", "reviews", "v1", True, True),
)


def counted(store: Store, requests: int) -> None:
    side = labels.side(WORKLOAD, WORKLOAD.identity, "Kubernetes")
    peers = labels.peers(
        side,
        side,
        labels.service(Service("reviews", "default", "reviews.default.svc.cluster.local", (), ())),
        "mutual_tls",
    )
    worker = WorkerMetrics()
    for _ in range(requests):
        worker.http(("source", "destination"), labels.http(peers, 200, "-")).observe(7.5, 300, 5000)
    worker.tcp(("destination",), labels.tcp(peers)).opened += 5
    for message in worker.delta():
        store.merge(message)


def ask(port: int, path: str, **query: str) -> Any:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}", timeout=60
    ) as response:
        return json.load(response)["data"]


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[int]:
    (folder / "prometheus.yml").write_text(CONFIG.format(port=target))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            *(
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        listens = await waiting.until(lambda: LISTENS.search((folder / "log").read_text()), "Prometheus listens")
        yield int(listens[1])
    finally:
        process.kill()
        await process.wait()


async def until(port: int, query: str, expected: float) -> None:
    """Wait until *query* gives one value, and that is *expected*."""
    answer: Any = None
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        await asyncio.sleep(4 * LOOK_SECONDS)  # what is asked is another process
        try:
            answer = (await asyncio.to_thread(ask, port, "/api/v1/query", query=query))["result"]
        except OSError:
            continue
        if [float(series["value"][1]) for series in answer] == [expected]:
            return
    raise AssertionError(f"{query}: expected {expected}, last answer {answer}")


async def scrape(folder: Path) -> None:
    store = Store()
    counted(store, 100)
    store.set(metrics.ENROLLED_PODS, (), 3)
    store.set(metrics.CERTIFICATE_EXPIRY, (WORKLOAD.identity,), 1.8e9)

    async def exposed(query: Mapping[str, str]) -> Response:
        return answer(rendered)

    async def rendered(wanted: Format) -> Iterator[bytes]:
        return store.exposition(wanted)

    server = await serve({("GET", "/metrics"): exposed}, hosts=EVERYWHERE)
    try:
        async with prometheus(folder, server.port) as port:
            await until(
                port,
                'sum(istio_requests_total{reporter="destination",connection_security_policy="mutual_tls",response_code="200"})',
                100,
            )
            await until(port, 'sum(istio_requests_total{reporter="source",destination_service_name="reviews"})', 100)
            # 7.5 lies in the bucket from 5 to 10.
            buckets = 'istio_request_duration_milliseconds_bucket{reporter="source",destination_workload="reviews-v1"}'
            await until(port, f"histogram_quantile(0.5, sum by (le) ({buckets}))", 7.5)
            await until(port, "sum(istio_tcp_connections_opened_total)", 5)
            await until(
                port, f'nodeagent_certificate_expiry_timestamp_seconds{{identity="{WORKLOAD.identity}"}}', 1.8e9
            )
            counted(store, 50)
            await until(port, 'sum(istio_requests_total{reporter="source"})', 150)
            await until(port, "up", 1)
            metadata = await asyncio.to_thread(ask, port, "/api/v1/metadata")
            assert metadata["istio_request_duration_milliseconds"][0]["type"] == "histogram"
    finally:
        await server.close()


def test_prometheus_scrapes_it(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(scrape(tmp_path), 2 * DEADLINE))
