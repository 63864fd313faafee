"""Load over HTTP/2 in a closed loop: requests by h2load, gRPC calls by grpc-go (``grpc_load/``), and
the download of one large answer by curl.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from nodeagent.compare.load import PERCENTILES, Client, CompareError, Sample, UnansweredError, Workload
from nodeagent.lab import programs

PROGRAM: Final = "grpcload"
GRPC: Final[frozenset[Workload]] = frozenset({"grpc", "grpc-stream"})
"""What that program serves, and asks."""
STREAMS: Final[Mapping[Workload, int]] = {"h2": 32, "h2-many": 32, "h2-cross-node": 32, "grpc": 32, "grpc-stream": 8}
"""Requests or calls at a time on each connection."""
MESSAGE_BYTES: Final = 1024
"""Of a message of ``grpc-stream``."""
_UNARY_BYTES: Final = 64
LARGE: Final = "/large"
"""A path at which the workload's server has 1 GiB."""


def built() -> bool:
    """Say whether grpc-go's program is there (``make grpc-load``)."""
    return shutil.which(PROGRAM, path=programs.PATH) is not None


def requests(client: Client, url: str, connections: int, streams: int, seconds: int) -> Sample:
    """Ask *url* over *connections* connections of HTTP/2 with *streams* requests at a time on each,
    from one thread, each as soon as an answer is there.
    """
    argv = ["h2load", f"-c{connections}", f"-m{streams}", f"-D{seconds}", "--log-file=/dev/stderr", url]
    told = client.output(argv, seconds)
    return read(told.stderr.splitlines(), seconds, url)


def read(lines: Iterable[str], seconds: int, url: str) -> Sample:
    """Return what h2load's log says: a line a request, with its start, status and time, both in µs."""
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    took = sorted([int(time) for _, status, time in rows if status == "200"])
    if len(took) < 2:
        raise UnansweredError(f"no request to {url} was answered with 200 over HTTP/2")
    return Sample(len(took), seconds, len(rows) - len(took), tuple(_percentiles(took)))


def _percentiles(took: Sequence[int]) -> Iterable[tuple[float, float]]:
    cuts = statistics.quantiles(took, n=10_000, method="inclusive")
    for percentile in PERCENTILES:
        yield percentile, took[-1] if percentile == 100 else cuts[round(percentile * 100) - 1]


def calls(client: Client, address: str, connections: int, streams: int, seconds: int) -> Sample:
    """Make unary calls to *address*, *streams* at a time on each of *connections* connections."""
    return _grpc(client, address, "unary", connections, streams, seconds, _UNARY_BYTES)


def messages(client: Client, address: str, connections: int, streams: int, seconds: int) -> Sample:
    """Take messages of MESSAGE_BYTES from *address*, *streams* server streams on each of
    *connections* connections; the sample's requests are the messages, which have no latency.
    """
    return _grpc(client, address, "stream", connections, streams, seconds, MESSAGE_BYTES)


def _grpc(client: Client, address: str, kind: str, connections: int, streams: int, seconds: int, size: int) -> Sample:
    argv = [PROGRAM, "load", f"-target={address}", f"-kind={kind}", f"-connections={connections}"]
    argv += [f"-streams={streams}", f"-seconds={seconds}", f"-size={size}"]
    told = client.run([*argv, f"-percentiles={','.join(map(str, PERCENTILES))}"], seconds)
    if not told["requests"]:
        raise UnansweredError(f"nothing that grpc-go asked {address} was answered")
    percentiles = tuple(zip(PERCENTILES, told["latencies"], strict=False))
    return Sample(told["requests"], told["microseconds"] / 1e6, told["errors"], percentiles)


def download(client: Client, url: str) -> Sample:
    """Take the large answer at *url* over one stream."""
    form = '{"bytes": %{size_download}, "seconds": %{time_total}, "version": "%{http_version}"}'
    argv = ["curl", "-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", form, url]
    told = client.run(argv, _DOWNLOAD_SECONDS)
    if told["version"] != "2" or told["bytes"] < _LARGE_BYTES:
        raise CompareError(f"{url}: HTTP/{told['version']}, {told['bytes']:,} bytes: 1 GiB over HTTP/2 is expected")
    return Sample(0, told["seconds"], 0, (), 8 * told["bytes"] / told["seconds"])


_DOWNLOAD_SECONDS: Final = 60
_LARGE_BYTES: Final = 1 << 30
