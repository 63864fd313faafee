"""The command line, run as a user runs it, against a fake admin server that speaks the daemon's API."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from nodeagent.cli import flow_rows, output
from nodeagent.cli.admin import Choice, RunningAgent, find
from nodeagent.cli.flows import Stream
from nodeagent.cli.get import COLUMNS
from nodeagent.cli.output import Column
from nodeagent.errors import ControlError, KernelError
from nodeagent.telemetry.http_server import HttpServer, Response, serve, serve_unix

ROOT = Path(__file__).parents[3]
POD = {
    "pod": "web-1\x1b[2J",
    "namespace": "default",
    "uid": "u1",
    "addresses": ["10.244.1.5", "fd00::5"],
    "identity": "spiffe://cluster.local/ns/default/sa/web",
    "state": "enrolled",
    "faults": [],
    "repaired": 2,
    "mode": "STRICT",
    "listeners": 4,
    "connections": 7,
}
FLOW = {
    "id": "1-1",
    "opened": 1700000000.0,
    "closed": None,
    "direction": "outbound",
    "source": "default/web-1",
    "source_identity": "",
    "destination": "default/db-1:3306",
    "destination_identity": "",
    "service": "db.default.svc.cluster.local",
    "path": "proxy-mtls",
    "protocol": "tcp",
    "verdict": "error",
    "reason": "connect_failed",
    "policy": "",
    "probe": False,
    "requests": 2,
    "codes": [503, 503],
    "sent": 2048,
    "received": 10,
    "worker": 9,
}


class FakeAgent:
    """The admin API on a unix socket and a TCP port, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flows: list[dict[str, Any]] = [FLOW]
        self.reloads = 0
        self.missing = ""
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._servers: list[HttpServer] = []
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        routes = {
            ("GET", "/ready"): self._ready,
            ("GET", "/pods"): self._rows([POD]),
            ("GET", "/certs"): self._rows(
                [
                    {
                        "identity": "spiffe://x",
                        "serial": "1",
                        "not_after": time.time() + 90_000,
                        "renew_at": time.time() + 65,
                    }
                ]
            ),
            ("GET", "/policies"): self._rows([]),
            ("GET", "/flows"): self._flows,
            ("GET", "/routes"): self._broken,
            ("GET", "/explain"): self._asked_wrongly,
            ("POST", "/reload"): self._reload,
        }
        self._servers = [await serve(routes), await serve_unix(routes, self.path)]
        self.port = self._servers[0].port

    async def _stop(self) -> None:
        for server in self._servers:
            await server.close()

    @staticmethod
    def _rows(rows: list[dict[str, Any]]) -> Any:
        async def handler(query: Mapping[str, str]) -> Response:
            return Response.json(rows)

        return handler

    async def _ready(self, query: Mapping[str, str]) -> Response:
        return Response(f"{self.missing or 'ready'}\n".encode(), 503 if self.missing else 200)

    async def _flows(self, query: Mapping[str, str]) -> Response:
        since = int(query["since"])
        return Response.json({"next": len(self.flows), "flows": self.flows[since:]})

    async def _broken(self, query: Mapping[str, str]) -> Response:
        raise KernelError("the maps are gone")

    async def _asked_wrongly(self, query: Mapping[str, str]) -> Response:
        return Response(f"DST: {query['destination']!r}: no such Service or pod\n".encode(), 400)

    async def _reload(self, query: Mapping[str, str]) -> Response:
        self.reloads += 1
        return Response.json({"workers": 2})


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "admin.sock") as fake:
        yield fake


def nodeagent(*arguments: str, admin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NODEAGENT_ADMIN": admin, "TZ": "UTC"}
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_help_is_quick_and_imports_no_command() -> None:
    code = (
        "import sys; from nodeagent.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: "
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    loaded = set(result.stderr.split())
    assert not loaded & {
        "rich",
        "yaml",
        "pydantic",
        "asyncio",
        "http.client",
        "cryptography",
        "nodeagent.config",
        "nodeagent.cli.lab",
    }
    assert [
        command
        for command in ("check", "run", "lab", "get", "flows", "ca", "ready", "reload")
        if f"\n  {command} " not in result.stdout
    ] == []


def test_every_command_has_help() -> None:
    for command in ("check", "run", "lab", "get", "flows", "logs", "ca", "reload"):
        result = nodeagent(command, "--help")
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"Usage: nodeagent {command}")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["get", "nodes"], 2, "'nodes' is not one of 'pods', 'certs', 'policies', 'routes', 'endpoints', 'logs'"),
        (["get"], 2, "Missing argument"),
        (["get", "pods", "-o", "xml"], 2, "'xml' is not one of"),
        (["run", "-c", "/nonexistent/agent.yaml"], 1, "/nonexistent/agent.yaml: cannot be read"),
        (
            ["get", "pods", "--admin", "http://127.0.0.1:1"],
            1,
            "http://127.0.0.1:1: Connection refused: does the agent run?",
        ),
        (
            ["get", "pods", "--admin", "/nonexistent.sock"],
            1,
            "/nonexistent.sock: No such file or directory: does the agent run?",
        ),
        (["get", "pods", "--admin", "ftp://x"], 1, "expected http://HOST:PORT or the path of a socket"),
        (["get", "pods", "--admin", "http://x:99999"], 1, "expected http://HOST:PORT or the path of a socket"),
        (["reload", "--admin", "/nonexistent.sock"], 1, "does the agent run?"),
        (["flows", "--code", "4x"], 2, "'4x': a status code such as 403, or 5xx, is expected"),
        (["flows", "--since", "soon"], 2, "'soon': a time such as 30s, 5m or 2h is expected"),
        (["flows", "--verdict", "no"], 2, "'no' is not one of 'allow', 'deny', 'error', 'mixed'"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], status: int, says: str) -> None:
    result = nodeagent(*arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.startswith("nodeagent: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_an_error_of_the_agent_is_told(agent: FakeAgent) -> None:
    result = nodeagent("get", "routes", admin=str(agent.path))
    assert result.returncode == 1
    assert result.stderr == f"nodeagent: {agent.path}: GET /routes: 500 the maps are gone\n"


@pytest.mark.parametrize("command", [["get", "logs"], ["logs", "web"]])
def test_logs_of_an_agent_that_reads_none(agent: FakeAgent, command: list[str]) -> None:
    result = nodeagent(*command, admin=str(agent.path))
    assert result.returncode == 1
    assert "no logs are read here: its agent.yaml has no section logs (docs/logs.md)" in result.stderr


def test_a_question_that_is_wrong_is_told_in_the_agents_words_alone(agent: FakeAgent) -> None:
    result = nodeagent("explain", "client", "nowhere", admin=str(agent.path))
    assert (result.returncode, result.stderr) == (
        1,
        f"nodeagent: {agent.path}: DST: 'nowhere': no such Service or pod\n",
    )


def test_a_port_that_is_not_an_agents(agent: FakeAgent) -> None:
    assert "404" in nodeagent("get", "endpoints", admin=f"http://127.0.0.1:{agent.port}").stderr


def test_get_prints_a_table(agent: FakeAgent) -> None:
    for admin in (str(agent.path), f"http://127.0.0.1:{agent.port}"):
        header, row = nodeagent("get", "pods", "--admin", admin).stdout.splitlines()
        assert re.split(r"\s{2,}", header.strip()) == [column.title for column in COLUMNS["pods"]]
        # Into a pipe nothing is cut, whatever the width of a terminal; escape codes are written
        # out.
        assert re.split(r"\s{2,}", row.strip())[:6] == [
            "default",
            "web-1\\x1b[2J",
            "enrolled",
            "STRICT",
            "10.244.1.5 fd00::5",
            POD["identity"],
        ]
        assert row.split()[-3:] == ["7", "4", "2"]


def test_get_prints_json_and_yaml(agent: FakeAgent) -> None:
    expected = [{"node": str(agent.path), **POD}]
    assert json.loads(nodeagent("get", "pods", "-o", "json", admin=str(agent.path)).stdout) == expected
    assert yaml.safe_load(nodeagent("get", "pods", "-o", "yaml", admin=str(agent.path)).stdout) == expected


def test_times_are_what_is_left(agent: FakeAgent) -> None:
    row = nodeagent("get", "certs", admin=str(agent.path)).stdout.splitlines()[1]
    assert "1d0h" in row
    assert re.search(r"1m[0-5]s", row)


def test_an_empty_list_says_so(agent: FakeAgent) -> None:
    assert nodeagent("get", "policies", admin=str(agent.path)).stdout == "nothing yet\n"
    assert nodeagent("get", "policies", "-o", "json", admin=str(agent.path)).stdout == "[]\n"


def test_ready(agent: FakeAgent, tmp_path: Path) -> None:
    """Input: an agent that is ready, of another cgroup; one that is not; nobody. Verdict: 0; 1 in
    each other case, with what is missing.
    """
    result = nodeagent("ready", admin=str(agent.path))
    assert (result.returncode, result.stdout) == (0, "ready\n")
    assert nodeagent("ready", "--own", admin=str(agent.path)).returncode == 0, "a thread of the same cgroup"
    agent.missing = "a worker is not up"
    result = nodeagent("ready", admin=str(agent.path))
    assert (result.returncode, result.stdout) == (1, "a worker is not up\n")
    assert nodeagent("ready", admin=str(tmp_path / "none")).returncode == 1
    result = nodeagent("ready", "--own", admin=f"http://127.0.0.1:{agent.port}")
    assert result.returncode == 1
    assert "the daemon that answers is another container's" in result.stderr


def test_reload(agent: FakeAgent) -> None:
    result = nodeagent("reload", "-o", "json", admin=str(agent.path))
    assert json.loads(result.stdout) == [{"node": str(agent.path), "workers": 2}]
    assert agent.reloads == 1


def test_flows(agent: FakeAgent) -> None:
    header, row = nodeagent("flows", admin=str(agent.path)).stdout.splitlines()
    assert header.split() == ["TIME", "LASTED", "FROM", "TO", "PATH", "REQS", "CODES", "IN", "OUT", "VERDICT"]
    told = [
        "22:13:20",
        "open",
        "default/web-1",
        "db.default",
        "mtls",
        "2",
        "503",
        "10",
        "2.0K",
        "error: connect_failed",
    ]
    assert re.split(r"\s{2,}", row.strip()) == told


def test_flows_are_the_last_twenty_without_probes(agent: FakeAgent) -> None:
    ended = [{**FLOW, "id": f"1-{number}", "closed": 1700000000.0 + number} for number in range(2, 32)]
    agent.flows += [*ended, *({**row, "id": f"2-{row['id']}", "probe": True} for row in ended)]
    asked = nodeagent("flows", admin=str(agent.path))
    assert len(asked.stdout.splitlines()) == 21
    assert asked.stderr == "the last 20 of 31 connections: --last 0 shows all\n"
    for options, count in (
        (["--last", "0"], 31),
        (["--last", "0", "--probes"], 61),
        (["--from", "web-*", "--last", "3"], 3),
        (["--verdict", "deny"], 0),
    ):
        assert len(json.loads(nodeagent("flows", "-o", "json", *options, admin=str(agent.path)).stdout)) == count, (
            options
        )


def following(agent: FakeAgent, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NODEAGENT_ADMIN": str(agent.path)}
    command = [sys.executable, "-m", "nodeagent", "flows", "-f", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_flows_are_followed_until_interrupted(agent: FakeAgent) -> None:
    process = following(agent, "-o", "json")
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == {"node": str(agent.path), **FLOW}
        agent.flows += [{**FLOW, "sent": 4096}, {**FLOW, "closed": 1700000005.0}, {**FLOW, "id": "1-2"}]
        # A flow is told when it opens and when it closes, not each time it moves.
        told = sorted((json.loads(process.stdout.readline()) for _ in range(2)), key=lambda flow: flow["id"])
        assert [(flow["id"], flow["closed"]) for flow in told] == [("1-1", 1700000005.0), ("1-2", None)]
        process.send_signal(2)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


def test_following_into_a_closed_pipe_ends_quietly(agent: FakeAgent) -> None:
    process = following(agent)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline().startswith("TIME")
        process.stdout.close()
        agent.flows += [{**FLOW, "id": f"1-{number}"} for number in range(2, 50)]
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_stream_outlives_its_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "admin.sock"
    stream = Stream(RunningAgent("node1", str(path)))
    with FakeAgent(path):
        assert [row["id"] for row in stream.poll()] == ["1-1"]
    assert list(stream.poll()) == list(stream.poll()) == []
    assert capsys.readouterr().err.count("waiting for it") == 1
    with FakeAgent(path):
        assert [row["id"] for row in stream.poll()] == ["1-1"]
        assert list(stream.poll()) == []


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Path]:
    """Agents of this machine and of two labs, one of which has a dead one too."""
    places = ["lab/demo/node1/run", "lab/demo/node2/run", "lab/other/node1/run"]
    for place in (*places, "lab/demo/dead/run"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "lab/demo/dead/run/admin.sock").touch()
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(FakeAgent(tmp_path / place / "admin.sock"))
        yield tmp_path


def test_no_agent_runs(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no agent runs here"):
        find(Choice(every=True), tmp_path)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (Choice(every=True), ["demo/node1", "demo/node2", "other/node1"]),
        (Choice(lab="demo"), ["demo/node1", "demo/node2"]),
        (Choice(lab="demo", node="node1"), ["demo/node1"]),
        (Choice(node="node2"), ["demo/node2"]),
        (Choice(node="node1", every=True), ["demo/node1", "other/node1"]),
        (Choice(admin="http://h:1"), ["http://h:1"]),
    ],
)
def test_which_agents_are_meant(three: Path, choice: Choice, meant: list[str]) -> None:
    assert [agent.name for agent in find(choice, three)] == meant


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            Choice(),
            (
                r"3 agents run here \(demo/node1, demo/node2, other/node1\): which one is meant\? Say --name LAB, "
                r"--node NODE, --admin ADDRESS, or --all"
            ),
        ),
        (Choice(node="node1"), r"2 agents run here \(demo/node1, other/node1\)"),
        (Choice(lab="none"), "no agent is meant by --name none; running: demo/node1, demo/node2, other/node1"),
        (Choice(lab="other", node="node2"), "no agent is meant by --name other --node node2"),
    ],
)
def test_several_agents_are_a_question(three: Path, choice: Choice, says: str) -> None:
    with pytest.raises((ControlError, click.UsageError), match=says):
        find(choice, three)


def test_the_only_agent_is_the_default(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "admin.sock"):
        (agent,) = find(Choice(), tmp_path)
        assert (agent.name, agent.lab) == (socket.gethostname(), "")


@pytest.mark.parametrize("command", [["get", "pods"], ["flows"], ["explain", "a", "b"], ["reload"]])
def test_every_command_that_talks_to_agents_chooses_them_alike(command: list[str]) -> None:
    options = nodeagent(command[0], "--help").stdout
    assert [flag for flag in ("--name LAB", "--node NODE", "--all ", "--admin ADDRESS") if flag not in options] == []
    both = nodeagent(*command, "--admin", "/x", "--all")
    assert (both.returncode, both.stdout) == (2, "")
    assert "--admin names one agent" in both.stderr
    # what is said beats the environment
    beaten = nodeagent(*command, "--name", "no-such-lab", admin="/nonexistent.sock")
    assert beaten.returncode == 1
    assert "/nonexistent.sock" not in beaten.stderr


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        *(
            (flow_rows.short, 0, "0"),
            (flow_rows.short, 999, "999"),
            (flow_rows.short, 1536, "1.5K"),
            (flow_rows.short, 5 << 30, "5.0G"),
        ),
        *((output.listed, ["a", 1], "a 1"), (output.listed, [], "")),
    ],
)
def test_values(show: Callable[[Any], str], value: Any, text: str) -> None:
    assert show(value) == text


def test_time_left() -> None:
    now = time.time() + 0.5
    assert [output.until(now + seconds) for seconds in (5, 65, 3660, 90_000, -65)] == [
        "0m5s",
        "1m5s",
        "1h1m",
        "1d1h",
        "-1m4s",
    ]


def test_a_narrow_table_leaves_out_what_is_extra_from_the_end() -> None:
    columns = [
        Column("NAME", "name"),
        Column("FIRST", "first", extra=True),
        Column("SECOND", "second", extra=True),
        Column("WHY", "why", wrap=True),
    ]
    rows = [{"name": "n" * 10, "first": "f" * 10, "second": "s" * 10, "why": "w"}]
    for widths, titles in (((40, 39), "NAME FIRST SECOND WHY"), ((38, 27), "NAME FIRST WHY"), ((26, 5), "NAME WHY")):
        for width in widths:
            assert " ".join(column.title for column in output.fitting(rows, columns, width)) == titles
