"""What a load generator does not do is told as a fault of the comparison, so that other modes go on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.compare import calls, load
from nodeagent.compare.load import Client, CompareError, Sample


def client(stdout: str = "", *, stderr: str = "", status: int = 0, hangs: bool = False) -> Client:
    def execute(pod: str, argv: list[str], namespace: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if hangs:
            raise subprocess.TimeoutExpired(argv, options["timeout"])
        return subprocess.CompletedProcess(argv, status, stdout, stderr)

    lab: Any = SimpleNamespace(exec=execute, name="mine")
    return Client(lab, "plain")


WAYS: tuple[Callable[[Client], Sample], ...] = (
    lambda client: load.closed(client, "http://a/", 1, 1),
    lambda client: load.open_loop(client, "http://a/", 1, 1, 1),
    lambda client: load.stream(client, "a:1", 1),
    lambda client: calls.calls(client, "a:1", 1, 1, 1),
)


@pytest.mark.parametrize("way", WAYS, ids=["closed", "open", "stream", "grpc"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (client(hangs=True), "still running after 21 s"),
        (client(status=1, stderr="unable to connect"), "unable to connect"),
        (client("no JSON at all"), "no JSON at all"),
        (client("{broken"), "broken"),
        (client(), "it says nothing"),
    ],
    ids=["hangs", "fails", "text", "broken", "silent"],
)
def test_what_does_not_measure_is_named(way: Callable[[Client], Sample], given: Client, message: str) -> None:
    with pytest.raises(CompareError, match=f"in plain/client of lab mine: .*{message}"):
        way(given)


def test_what_is_answered_with_an_error_is_no_request_that_was_answered() -> None:
    told = '{"requests": 10, "refused": %d, "microseconds": 1000000, "errors": 4, "latencies": [%s]}'
    latencies = ", ".join("1" for _ in load.PERCENTILES)
    sample = load.closed(client(told % (4, latencies)), "http://a/", 1, 1)
    assert (sample.requests, sample.errors, sample.rate) == (6, 4, 6)
    with pytest.raises(CompareError, match="was answered well"):
        load.closed(client(told % (10, latencies)), "http://a/", 1, 1)


LOG = [
    f"{start}\t{status}\t{took}" for start, status, took in ((1, 200, 100), (2, 503, 5), (3, 200, 300), (4, 200, 200))
]


def test_h2loads_log_is_a_sample() -> None:
    """What is not answered with 200 failed; h2load tells no percentiles itself."""
    sample = calls.read(["a warning", *LOG], 2, "http://a/")
    assert (sample.requests, sample.rate, sample.errors) == (3, 1.5, 1)
    assert (sample.at(50), sample.at(100)) == (200, 300)
    assert [value for _, value in sample.percentiles] == sorted(value for _, value in sample.percentiles)


@pytest.mark.parametrize("lines", [[], ["finished in 2.00s"], LOG[1:2]])
def test_without_an_answer_there_is_no_sample(lines: list[str]) -> None:
    with pytest.raises(CompareError, match="no request to http://a/ was answered"):
        calls.read(lines, 2, "http://a/")


def test_grpc_messages_have_no_latency() -> None:
    told = client('{"requests": 500, "microseconds": 250000, "errors": 1, "latencies": []}')
    sample = calls.messages(told, "a:1", 1, 8, 1)
    assert (sample.rate, sample.errors, sample.percentiles) == (2000, 1, ())


@pytest.mark.parametrize(
    ("version", "size", "right"), [("2", 1 << 30, True), ("1.1", 1 << 30, False), ("2", 1000, False)]
)
def test_a_download_is_of_1_gib_over_http2(version: str, size: int, right: bool) -> None:
    told = client(f'{{"bytes": {size}, "seconds": 2.0, "version": "{version}"}}')
    if right:
        assert calls.download(told, "http://a/large").bits_per_second == 4 * size
    else:
        with pytest.raises(CompareError, match="1 GiB over HTTP/2 is expected"):
            calls.download(told, "http://a/large")
