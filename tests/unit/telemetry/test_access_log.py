"""The access log: its two formats, what clients cannot do to it, and that nothing about the file stalls the loop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cli.main import cli
from nodeagent.errors import ConfigError
from nodeagent.telemetry import log_format, log_writer
from nodeagent.telemetry.access_log import AccessLog
from nodeagent.telemetry.log_format import FIELDS, Record
from tests.waiting import DEADLINE, until

REQUEST: Record = (
    *(
        1606339578.4099,
        "GET",
        "/productpage?u=normal",
        "HTTP/1.1",
        200,
        "-",
        "via_upstream",
        "-",
        "-",
        0,
        5183,
        42.9,
        41.2,
    ),
    *(
        "10.0.0.1, 10.0.0.2",
        "curl/7.88 (x86)",
        "a1b2c3d4-e5f6-4711-9a0b-aabbccddeeff",
        "productpage:9080",
        "10.244.1.5:9080",
    ),
    *(
        "outbound|9080||productpage.default.svc.cluster.local",
        "10.244.1.4:43210",
        "10.96.0.5:9080",
        "10.244.1.4:51234",
        "-",
        "default",
        "-",
    ),
)
CONNECTION: Record = (
    *(1606339578.0, "-", "-", "-", 0, "-", "-", "-", "-", 100, 200, 5.0, None, "-", "-", "-", "-"),
    *(
        "[fd00::5]:3306",
        "outbound|3306||db.default.svc.cluster.local",
        "-",
        "[fd00:1::5]:3306",
        "[fd00::4]:51234",
        "-",
        "-",
        "-",
    ),
)


def changed(**values: Any) -> Record:
    fields = dict(zip(FIELDS, REQUEST, strict=True)) | values
    return tuple(fields.values())  # type: ignore[return-value]


def test_the_places_that_the_formatter_knows_are_those_of_the_fields() -> None:
    assert [
        FIELDS[place]
        for place in (
            *(log_format._PATH, log_format._FLAGS, log_format._UPSTREAM_TIME, log_format._SERVER_NAME),
            log_format._GRPC_STATUS,
        )
    ] == [*("path", "response_flags", "upstream_service_time", "requested_server_name", "grpc_status")]


def test_text_is_istios_default_format() -> None:
    assert log_format.text([REQUEST, CONNECTION]).decode() == (
        '[2020-11-25T21:26:18.409Z] "GET /productpage?u=normal HTTP/1.1" 200 - via_upstream - "-" 0 5183 42 '
        '41 "10.0.0.1, 10.0.0.2" "curl/7.88 (x86)" '
        '"a1b2c3d4-e5f6-4711-9a0b-aabbccddeeff" "productpage:9080" "10.244.1.5:9080" '
        "outbound|9080||productpage.default.svc.cluster.local "
        "10.244.1.4:43210 10.96.0.5:9080 10.244.1.4:51234 - default\n"
        '[2020-11-25T21:26:18.000Z] "- - -" 0 - - - "-" 100 200 5 - "-" "-" "-" "-" "[fd00::5]:3306" '
        "outbound|3306||db.default.svc.cluster.local "
        "- [fd00:1::5]:3306 [fd00::4]:51234 - -\n"
    )


def test_the_lines_of_grpc_calls_end_with_their_status() -> None:
    call = changed(method="POST", path="/shop.Cart/Add", protocol="HTTP/2", grpc_status="7")
    text = log_format.text([call, REQUEST]).decode().splitlines()
    assert text[0].endswith(" - default 7")
    assert text[1].endswith(" - default")
    told, untold = (json.loads(line) for line in log_format.json([call, REQUEST]).splitlines())
    assert told["grpc_status"] == "7"
    assert "grpc_status" not in untold


def test_json_has_istios_keys_and_null_for_what_there_is_not() -> None:
    request, connection = (json.loads(line) for line in log_format.json([REQUEST, CONNECTION]).splitlines())
    assert set(request) == set(FIELDS) - {"grpc_status"}
    assert request["start_time"] == "2020-11-25T21:26:18.409Z"
    assert (request["duration"], request["upstream_service_time"], request["bytes_sent"], request["response_code"]) == (
        42,
        41,
        5183,
        200,
    )
    assert connection["method"] is connection["upstream_service_time"] is connection["route_name"] is None
    assert connection["response_flags"] == "-"


@pytest.mark.parametrize(
    ("field", "value", "written"),
    [
        ("user_agent", 'x" 200 "', '"x\\x22 200 \\x22"'),
        ("user_agent", "x\r\n[2020] forged", '"x\\x0D\\x0A[2020] forged"'),
        ("user_agent", "\\x22", '"\\x5Cx22"'),
        ("path", "/\x1b[2Jgone", "/\\x1B[2Jgone"),
        ("path", "/a HTTP/1.1", "/a\\x20HTTP/1.1 HTTP/1.1"),
        ("path", "/é".encode().decode("latin-1"), "/\\xC3\\xA9 HTTP/1.1"),
        ("path", "/\u202e", "/\\xE2\\x80\\xAE HTTP/1.1"),
        ("path", "/\ud800", "/\\xED\\xA0\\x80 HTTP/1.1"),
        ("authority", "\x7f\x9b", '"\\x7F\\x9B"'),
        ("requested_server_name", "a b - -", " a\\x20b\\x20-\\x20- "),
    ],
)
def test_text_escapes_what_a_client_made_up(field: str, value: str, written: str) -> None:
    honest, hostile = log_format.text([REQUEST, changed(**{field: value})]).decode().splitlines()
    assert honest == log_format.text([REQUEST]).decode().rstrip("\n")
    assert written in hostile


TEXTS = ["path", "user_agent", "x_forwarded_for", "request_id", "authority", "requested_server_name", "method"]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(TEXTS), st.text(st.characters() | st.sampled_from('"\\\r\n\x1b ')), max_size=3),
        max_size=6,
    )
)
def test_whatever_clients_send_a_record_is_one_plain_line(requests: list[dict[str, str]]) -> None:
    records = [changed(**request) for request in requests]
    for line in [*log_format.text(records).split(b"\n"), *log_format.json(records).split(b"\n")]:
        assert re.fullmatch(rb"[\x20-\x7e]*", line)
    text = log_format.text(records).split(b"\n")
    assert len(text) == len(records) + 1
    assert all(line.count(b'"') == 14 for line in text[:-1])
    for line, request in zip(log_format.json(records).splitlines(), requests, strict=True):
        decoded = json.loads(line)
        for field, value in request.items():
            if value.isascii() and value != "-":
                assert decoded[field] == value


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(TEXTS), st.text(st.characters(codec="ascii", exclude_characters=" -")), max_size=3
        ),
        max_size=3,
    )
)
def test_a_batch_reads_as_its_lines_do(requests: list[dict[str, str]]) -> None:
    records = [changed(**request) for request in requests]
    for kind in (log_format.text, log_format.json):
        assert kind(records) == b"".join(kind([record]) for record in records)


def test_nothing_waits_for_the_disk(tmp_path: Path) -> None:
    """A pipe that nobody reads: logging goes on, memory is bounded, what is lost is counted."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path), queue_bytes=200_000)
    started = time.perf_counter()
    for _ in range(10_000):
        log.log(REQUEST)
    log.flush()
    assert time.perf_counter() - started < DEADLINE  # whoever waits for a reader waits for ever
    assert 8_000 < log.dropped < 10_000
    os.close(reader)
    log.close()  # the writer now fails (EPIPE): what waited is lost and counted, too
    assert 9_000 < log.dropped <= 10_000


def test_lines_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def run() -> str:
        log = AccessLog(str(path))
        log.start()
        for _ in range(100):
            log.log(REQUEST)
        await until(lambda: path.read_text().count("\n") == 100)
        text = path.read_text()
        log.log(CONNECTION)
        log.close()
        assert log.dropped == 0
        return text

    assert asyncio.run(run()).count("\n") == 100
    assert path.read_text().count("\n") == 101
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_log_of_which_nothing_is_asked_wakes_nobody(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def run() -> list[int]:
        loop, log, found = asyncio.get_running_loop(), AccessLog(str(path)), []
        log.start()
        await asyncio.sleep(0.25)  # longer than the log's interval
        with mock.patch.object(loop, "call_at", wraps=loop.call_at) as timers:
            for lines in (0, 2, 0, 1):
                for _ in range(lines):
                    log.log(REQUEST)
                await asyncio.sleep(0.25)  # longer than the log's interval
                found.append(sum(call.args[1].__qualname__.startswith("AccessLog") for call in timers.call_args_list))
                timers.reset_mock()
        assert path.read_text().count("\n") == 3
        log.close()
        return found

    assert asyncio.run(run()) == [0, 1, 0, 1]


def test_a_full_disk_loses_lines_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("/dev/full")
    for _ in range(10):
        log.log(REQUEST)
        log.flush()
    log.close()
    assert log.dropped == 10
    assert caplog.text.count("No space left on device") == 1


def test_a_log_that_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"telemetry\.accessLog\.path: .*No such file or directory: does its folder exist"
    ):
        AccessLog(str(tmp_path / "no" / "access.log"))


@pytest.mark.parametrize("replaces", [(), ("--replace",)])
@pytest.mark.parametrize("place", ["no/access.log", ".", "file/access.log", "pipe"])
def test_a_daemon_whose_log_cannot_be_opened_takes_nothing_over(
    tmp_path: Path, place: str, replaces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before it begins in the background, or touches what another daemon has."""

    def begun(*given: object) -> int:
        raise AssertionError("it began")

    monkeypatch.setattr("nodeagent.cli.background.begin", begun)
    monkeypatch.setattr("nodeagent.agent.main", begun)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    config = tmp_path / "agent.yaml"
    log = {"path": f"{tmp_path}/{place}"}
    folders = {"source": str(tmp_path), "identity": {"caDirectory": str(tmp_path)}, "redirect": {"cgroup": "/"}}
    config.write_text(json.dumps({"node": "a", **folders, "telemetry": {"accessLog": log}}))
    with pytest.raises(ConfigError, match=r"telemetry\.accessLog\.path: .*(: does its folder exist|an absolute path)"):
        cli.main(["run", "-c", str(config), *replaces], standalone_mode=False)


def test_who_reads_a_pipe_that_was_tried_sees_no_end_before_workers_have_it(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    held = log_writer.try_to_open(str(path))
    with pytest.raises(BlockingIOError):  # at the end of the file it were nothing
        os.read(reader, 1)
    os.close(held)
    os.close(reader)
    (tmp_path / "file").touch()
    assert log_writer.try_to_open(str(tmp_path / "file")) == -1


def test_a_busy_worker_loses_no_lines(tmp_path: Path) -> None:
    """A loop that never sleeps, as a saturated proxy's: between system calls the writer gets the
    interpreter, and takes all that waits.
    """
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    ends = socket.socketpair()
    for _ in range(60_000):
        ends[0].send(b"x")
        ends[1].recv(1)
        log.log(REQUEST)
    log.close(10)
    for end in ends:
        end.close()
    assert log.dropped == 0
    assert path.read_bytes().count(b"\n") == 60_000


def test_no_path_logs_nothing() -> None:
    log = AccessLog("")
    assert not log.enabled
    for _ in range(1000):
        log.log(REQUEST)
    log.close()
    assert log.dropped == 0


WRITER = """
import sys
from nodeagent.telemetry.access_log import AccessLog
record = {record!r}
log = AccessLog("-")
for number in range(2000):
    log.log((*record[:2], f"/{{sys.argv[1]}}/{{number}}" + "x" * (number % 300), *record[3:]))
log.close(20)
"""


def test_lines_of_several_workers_on_one_pipe_do_not_mix() -> None:
    """Standard output of a container is a pipe, and a write to a pipe is atomic only up to PIPE_BUF."""
    code = shlex.quote(WRITER.format(record=REQUEST))
    command = " & ".join(f"{shlex.quote(sys.executable)} -c {code} {name}" for name in "abc") + " & wait"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 6000
    assert all(
        line.startswith('[2020-11-25T21:26:18.409Z] "GET /') and line.endswith(" - default") and line.count('"') == 14
        for line in lines
    )
    for name in "abc":
        numbers = [int(match[1]) for line in lines if (match := re.search(rf"GET /{name}/(\d+)", line))]
        assert numbers == list(range(2000))
