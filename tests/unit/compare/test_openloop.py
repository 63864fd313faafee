"""Open-loop load: the schedule does not follow the server, and nothing that goes wrong is lost from the count."""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.compare.openloop import HttpTarget, OpenLoopError, Schedule, run
from nodeagent.compare.openloop.flow import PERCENTILES, merged
from nodeagent.compare.openloop.target import TargetError
from tests.waiting import DEADLINE

MS = 1_000_000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[int], list[bytes | float]]
"""What the n-th request of the server gets: pieces to send, or seconds to wait."""


# The schedule


@given(st.lists(st.integers(0, 50 * MS), min_size=1, max_size=200), st.floats(1, 5000))
def test_requests_are_due_at_their_times_whenever_the_client_looks(steps: list[int], rate: float) -> None:
    flow, now, taken = Schedule(1000, rate, 2), 1000, 0
    for step in steps:
        now += step
        while (number := flow.take(now)) >= 0:
            assert number == taken
            assert abs(flow.due(number) - 1000 - number * 1e9 / rate) <= 1  # nanosecond, by rounding
            taken += 1
        assert flow.sent == flow.total or flow.due(taken) > now, "nothing that is due is held back"


def simulated(rate: float, seconds: float, connections: int, service: Callable[[int], int]) -> Schedule:
    """Run a flow on an injected clock of whole milliseconds against a server that takes
    *service(now)* ns for a request begun at *now*.
    """
    flow, free = Schedule(0, rate, seconds), connections
    busy: deque[tuple[int, int]] = deque()
    for now in range(0, int((seconds + 2) * 1e9), MS):
        for _ in range(len(busy)):
            number, end = busy.popleft()
            if end <= now:
                flow.answered(number, now)
                free += 1
            else:
                busy.append((number, end))
        while free and (number := flow.take(now)) >= 0:
            busy.append((number, now + service(now)))
            free -= 1
    return flow


@pytest.mark.parametrize("connections", [1, 8, 64])
def test_a_stall_is_counted_for_every_request_that_was_due_meanwhile(connections: int) -> None:
    """On the injected clock: a stall from 1.0 to 1.3 s. A closed loop would have seen as many slow
    requests as connections.
    """

    def service(now: int) -> int:
        return max(MS, 1_300 * MS - now) if 1_000 * MS <= now < 1_300 * MS else MS

    result = simulated(1000, 2, connections, service).result()
    assert (result["requests"], result["late"], result["errors"]) == (2000, 0, 0)
    slow = 1 - max(percentile for percentile, latency in result["percentiles"] if latency < 100_000) / 100
    assert slow * 2000 >= 150, "of 300 due during the stall, those of its first 200 ms took over 100 ms"
    assert result["latency_us"]["max"] >= 299_000


def test_a_server_that_cannot_keep_up_leaves_requests_unsent() -> None:
    flow = Schedule(0, 100, 1)
    for now in range(0, 1000 * MS, 20 * MS):
        flow.answered(flow.take(now), now + 20 * MS)
    result = flow.result()
    assert (result["requests"], result["late"]) == (50, 50)
    assert result["achieved_rate"] < 51


def test_warm_requests_are_sent_and_not_counted() -> None:
    flow = Schedule(0, 10, 1, warmup=0.5)
    assert (flow.warm, flow.total) == (5, 15)
    for number in range(15):
        assert flow.take(flow.due(number)) == number
        if number in (0, 14):
            flow.failed(number, "cut")
        else:
            flow.answered(number, flow.due(number) + (9 if number < 5 else 7) * MS)
    result = flow.result()
    assert (result["requests"], result["errors"], result["late"]) == (9, 1, 0)
    assert result["error_causes"] == {"cut": 1}
    assert result["latency_us"]["max"] == pytest.approx(7000, rel=0.001)


def test_percentiles_end_where_the_requests_do() -> None:
    flow = Schedule(0, 1000, 1)
    for number in range(1000):
        flow.take(flow.due(number))
        flow.answered(number, flow.due(number) + (number + 1) * 1000)
    result = flow.result()
    assert len(PERCENTILES) == 41
    assert PERCENTILES[-1] == pytest.approx(99.999)
    assert result["latency_us"] == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert result["percentiles"][-1] == [99.9, 999], "no percentile beyond which nothing was measured"
    assert result["percentiles"][0][0] == 0
    assert Schedule(0, 1, 1).result()["latency_us"] == {}


def test_rounds_are_merged_as_histograms() -> None:
    both = []
    for latency in (1000, 3000):
        flow = Schedule(0, 100, 1)
        for number in range(100):
            flow.answered(number, flow.due(number) + latency * 1000)
        both.append(flow.result()["histogram"])
    total = merged(both)
    assert total.get_total_count() == 200
    assert total.get_value_at_percentile(50) == 1000
    assert total.get_value_at_percentile(51) == pytest.approx(3000, rel=0.001)


# The target


def test_a_request_is_what_was_asked_for() -> None:
    target = HttpTarget.parse("http://[::1]:8080/a?b=c", "POST", ["X-One:  1 ", "Connection: close"])
    assert target.address[:2] == ("::1", 8080)
    assert target.shown == "[::1]:8080"
    assert (
        target.request
        == b"POST /a?b=c HTTP/1.1\r\nHost: [::1]:8080\r\nX-One: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    assert (
        HttpTarget.parse("http://127.0.0.1", headers=["host: shop"]).request == b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("url", "method", "header", "said"),
    [
        ("https://host/", "GET", "A: b", "--url"),
        ("http:///path", "GET", "A: b", "--url"),
        ("http://127.0.0.1:99999/", "GET", "A: b", "--url"),
        ("http://127.0.0.1/a b", "GET", "A: b", "--url"),
        ("http://127.0.0.1/\r\nX: y", "GET", "A: b", "--url"),
        ("http://u:p@127.0.0.1/", "GET", "A: b", "--url"),
        ("http://127.0.0.1/", "HEAD", "A: b", "--method"),
        ("http://127.0.0.1/", "GET", "A", "--header"),
        ("http://127.0.0.1/", "GET", "A: b\r\nC: d", "--header"),
        ("http://127.0.0.1/", "GET", "Content-Length: 5", "--header"),
    ],
)
def test_what_cannot_be_asked_is_named(url: str, method: str, header: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        HttpTarget.parse(url, method, [header])


def test_a_header_s_value_is_never_shown() -> None:
    with pytest.raises(TargetError) as caught:
        HttpTarget.parse("http://127.0.0.1/", headers=["Authorization: Bearer s3cret\x00"])
    assert "s3cret" not in str(caught.value)


# Against servers


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection. Requests have no body; a wait holds up all connections; an empty piece hangs up."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.count = 0


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        try:
            while self.rfile.readline():
                while self.rfile.readline().strip():
                    pass
                with self.server.lock:
                    pieces, self.server.count = self.server.answer(self.server.count), self.server.count + 1
                    if not self.tell(pieces):
                        return
        except OSError:  # the client has gone
            pass

    def tell(self, pieces: list[bytes | float]) -> bool:
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)  # so long as the case says
            elif piece:
                self.request.sendall(piece)
            else:
                return False
        return True


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """Serve; yield the URL."""
    with Server(answer) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}/"
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Whatever was due is asked, however late a busy machine is; return the seconds that an answer may take."""
    monkeypatch.setattr("nodeagent.compare.openloop.client.GRACE_SECONDS", DEADLINE)
    return DEADLINE


@pytest.mark.parametrize(
    "pieces",
    [
        [OK],
        [OK[:10], 0.001, OK[10:30], 0.001, OK[30:]],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", 0.001, b"o\r\n1\r\nk\r\n0\r\n", 0.001, b"\r\n"],
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 0.001, OK],
        [b"HTTP/1.1 204 No Content\r\n\r\n"],
    ],
    ids=["whole", "split", "chunked", "interim", "no content"],
)
def test_good_answers(patient: float, pieces: list[bytes | float]) -> None:
    with server(lambda _: pieces) as url:
        result = run(HttpTarget.parse(url), 100, 4, 0.3, timeout=patient)
    assert (result["requests"], result["errors"], result["late"]) == (30, 0, 0), result
    assert result["latency_us"]["p50"] > 0
    assert result["cpu_seconds"] > 0


@pytest.mark.parametrize(
    ("pieces", "cause"),
    [
        ([b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], "status 503"),
        ([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"], "status 302"),
        ([OK[:-1], b""], "cut"),
        ([b""], "cut"),
        ([b"HTTP/1.1 200 OK\r\n\r\nendless", b""], "cut"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"], "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok"], "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"], "not HTTP"),
        ([OK + OK], "more answers than requests"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", 0.3], "timeout"),
    ],
)
def test_wrong_answers_are_errors_and_the_run_goes_on(pieces: list[bytes | float], cause: str) -> None:
    """Every tenth answer is wrong."""
    with server(lambda count: pieces if count % 10 == 5 else [OK]) as url:
        result = run(HttpTarget.parse(url), 100, 4, 0.4, timeout=0.2)
    assert cause in result["error_causes"]
    assert result["requests"] + result["errors"] + result["late"] == 40
    assert result["requests"] > 0


def test_a_stall_shows_in_the_tail_of_many_requests(patient: float) -> None:
    """One answer of 1,500 is held up by 300 ms, and with it everything behind it."""
    with server(lambda count: [0.3, OK] if count == 500 else [OK]) as url:
        result = run(HttpTarget.parse(url), 1000, 4, 1.5, timeout=patient)
    assert (result["requests"], result["errors"], result["late"]) == (1500, 0, 0)
    assert result["latency_us"]["p90"] > 100_000, "200 of 1,500 were due over 100 ms before the stall's end"
    assert result["latency_us"]["max"] >= 299_000


def test_an_overloaded_server_is_told_by_what_was_never_sent() -> None:
    with server(lambda _: [0.02, OK]) as url:
        result = run(HttpTarget.parse(url), 500, 2, 0.5)
    assert result["late"] > 0
    assert result["requests"] + result["late"] == 250
    assert result["achieved_rate"] < 60


def test_connections_are_opened_anew(patient: float) -> None:
    """By Connection: close for each request, within its time; and after a server that hangs up between two requests."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for pieces in ([closing, b""], [closing]):
        with server(lambda _, pieces=pieces: pieces) as url:  # type: ignore[misc]
            result = run(HttpTarget.parse(url, headers=["Connection: close"]), 100, 4, 0.3, timeout=patient)
        assert (result["requests"], result["errors"]) == (30, 0)
    with server(lambda _: [OK, b""]) as url:
        result = run(HttpTarget.parse(url), 20, 4, 0.5, timeout=patient)
    assert result["requests"] + result["errors"] == 10
    assert result["requests"] >= 5


def test_a_server_that_goes_away_makes_errors(patient: float) -> None:
    with server(lambda count: [OK] if count < 10 else [b""]) as url:
        result = run(HttpTarget.parse(url), 100, 2, 0.3, timeout=patient)
    assert result["requests"] == 10
    assert result["errors"] == 20


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = HttpTarget.parse(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        with pytest.raises(OpenLoopError, match=r"connect to 127\.0\.0\.1:\d+: Connection refused"):
            run(target, 10, 2, 0.1)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent.compare.openloop", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_prints_one_line() -> None:
    with server(lambda _: [OK]) as url:
        done = command(
            "--url",
            url,
            "--rate",
            "50",
            "--connections",
            "2",
            "--seconds",
            "0.4",
            "--warmup",
            "0.1",
            "--header",
            "X: y",
        )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    told = json.loads(done.stdout)
    assert told.keys() >= {
        "requests",
        "errors",
        "seconds",
        "rate",
        "achieved_rate",
        "late",
        "latency_us",
        "percentiles",
        "histogram",
    }
    assert told["requests"] == 20


def test_the_command_refuses() -> None:
    done = command("--url", "http://127.0.0.1:1/", "--rate", "10", "--seconds", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: connect to 127.0.0.1:1: Connection refused")
    done = command("--url", "http://127.0.0.1:1/", "--rate", "0")
    assert done.returncode == 2
    assert "--rate: 0.0: allowed: 0.1 to 200000" in done.stderr
