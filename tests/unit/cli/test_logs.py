"""``nodeagent logs``, run as a user runs it, against the daemon's own page."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.control.log_text import ANSWER_BYTES, MAX_FILES
from nodeagent.lab import cri_log
from nodeagent.telemetry.http_server import serve_unix
from tests.unit.cli.test_commands import ROOT
from tests.unit.control.test_log_text import Node

SIDECAR = ROOT / "tests" / "unit" / "logs" / "fluentd" / "sidecar.yaml"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose pages are served at ``admin.sock``."""
    made = Node(tmp_path)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    routes = {("GET", "/logs/text"): made.text.page, ("GET", "/logs/pods"): made.text.names}
    server = asyncio.run_coroutine_threadsafe(serve_unix(routes, tmp_path / "admin.sock"), loop).result(5)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "nodeagent", "logs", "--admin", str(folder / "admin.sock"), *arguments]


def run(*argv: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_lines_are_printed(node: Node, tmp_path: Path) -> None:
    node.write("app", "one\ntwo\n", 1)
    node.write("app", "x" * 40_000 + "\n", 2)
    node.write("side", "three\n", 3)
    lines = run(*command(tmp_path, "web")).stdout.splitlines()
    assert lines == ["web/app | one", "web/app | two", "web/app | " + "x" * 40_000, "web/side | three"]
    assert run(*command(tmp_path, "default/web", "-c", "app", "--grep", "^t")).stdout == "two\n"
    assert run(*command(tmp_path, "web", "--tail", "1")).stdout == "web/side | three\n"
    assert run(*command(tmp_path, "--since", "10000d", "--tail", "1")).stdout == "web/side | three\n"
    assert run(*command(tmp_path)).stdout == ""  # of all pods: the last minute
    row = json.loads(run(*command(tmp_path, "web", "--tail", "1", "-o", "json")).stdout)
    assert {name: row[name] for name in ("namespace", "pod", "source", "stream", "text")} == {
        "namespace": "default",
        "pod": "web",
        "source": "side",
        "stream": "stdout",
        "text": "three",
    }


def test_all_lines_are_printed_of_many_and_the_last_ones_are_the_newest(node: Node, tmp_path: Path) -> None:
    numbers = range(0, 30_000, 3)
    lines = [f"{number:06} " + "x" * 90 for number in numbers]
    content = [
        cri_log.encode(b"stdout", f"{line}\n".encode(), number) for number, line in zip(numbers, lines, strict=True)
    ]
    path = node.write("app", "", 1)
    path.write_bytes(b"".join(content[:9000]))
    node.write("side", "", 2).write_bytes(b"".join(content[9000:]))
    os.utime(path)  # it is read last
    assert path.stat().st_size > ANSWER_BYTES
    printed = run(*command(tmp_path, "web", "-c", "app")).stdout.splitlines()
    assert printed == lines[:9000]
    last = run(*command(tmp_path, "web", "--tail", "1500")).stdout.splitlines()
    assert [each.partition(" | ")[2] for each in last] == lines[-1500:]


def test_what_is_not_read_is_said(node: Node, tmp_path: Path) -> None:
    for number in range(MAX_FILES + 6):
        (node.volume / f"{number}.log").write_text(f"{number}\n")
    (node.volume / "evil.log").symlink_to("/etc/passwd")
    done = run(*command(tmp_path, "web"))
    assert len(done.stdout.splitlines()) == MAX_FILES
    assert f"default/web: of {MAX_FILES + 6} files the {MAX_FILES} newest are read" in done.stderr
    assert "evil.log" in done.stderr and "a symbolic link" in done.stderr


def test_a_pod_that_is_not_there_is_named(node: Node, tmp_path: Path) -> None:
    done = run(*command(tmp_path, "nobody"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pod 'default/nobody' is none of this node's; there are default/web" in done.stderr
    done = run(*command(tmp_path, "web", "--grep", "("))
    assert done.returncode == 2
    assert "a regular expression is expected" in done.stderr


def test_a_container_that_is_not_there_is_named_with_those_that_are(node: Node, tmp_path: Path) -> None:
    node.write("init", "one\n", 1)
    (node.volume / "a.log").write_text("two\n")
    for wrong in ("nothing", "logs/a.txt"):
        done = run(*command(tmp_path, "web", "-c", wrong))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"pod 'default/web' has no container or file '{wrong}'; there are app, init, logs/a.log" in done.stderr
    for silent in ("app", "logs/later.log"):
        assert run(*command(tmp_path, "web", "-c", silent)).returncode == 0


def test_logs_are_followed(node: Node, tmp_path: Path) -> None:
    path = node.write("app", "one\n", 1)
    argv = command(tmp_path, "web", "-f")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as follower:
        assert follower.stdout
        try:
            assert follower.stdout.readline() == "web/app | one\n"
            node.write("app", "two\n", 2)
            assert follower.stdout.readline() == "web/app | two\n"
            path.rename(path.with_name("0.log.20240101-000000"))
            node.write("app", "three\n", 3)
            assert follower.stdout.readline() == "web/app | three\n"
        finally:
            follower.terminate()


def test_a_fluentd_configuration_is_imported(tmp_path: Path) -> None:
    changed = tmp_path / "pod.yaml"
    done = run(
        *(sys.executable, "-m", "nodeagent", "logs", "import", str(SIDECAR), "--pod-output", str(changed)),
        *("--env", "FLUENT_ELASTICSEARCH_HOST=10.0.0.1"),
    )
    assert done.returncode == 0, done.stderr
    assert "urls:\n      - http://10.0.0.1:9200" in done.stdout
    assert "fluent.conf:1: read_from_head is not set" in done.stderr
    assert "nodeagent.io/log-files: log-volume/*.log" in changed.read_text()
    assert "image: fluent" not in changed.read_text()
    before = changed.write_text(SIDECAR.read_text())
    over = run(sys.executable, "-m", "nodeagent", "logs", "import", str(changed), "--pod-output", str(changed))
    assert over.returncode != 0
    assert "is read, and would be lost: another file is expected" in over.stderr
    assert len(changed.read_text()) == before


def test_a_fluentd_configuration_with_files_beside_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "fluent.conf").write_text("@include conf.d/*.conf\n<match **>\n@type stdout\n</match>\n")
    (tmp_path / "conf.d").mkdir()
    source = "<source>\n@type tail\npath /var/log/containers/*.log\ntag k.*\n<parse>\n@type cri\n</parse>\n</source>\n"
    (tmp_path / "conf.d" / "a.conf").write_text(source)
    argv = (sys.executable, "-m", "nodeagent", "logs", "import")
    done = run(*argv, str(tmp_path / "fluent.conf"), "-o", "json")
    found = json.loads(done.stdout)
    assert (found["logs"]["containers"], found["pods"][0]["notes"][0]["file"]) == ("all", "conf.d/a.conf")
    (tmp_path / "fluent.conf").write_text("@include ../../etc/passwd\n")
    done = run(*argv, str(tmp_path / "fluent.conf"))
    assert done.returncode == 1
    assert "@include ../../etc/passwd: only files beside" in done.stderr
    (tmp_path / "fluent.conf").write_text(source + "<match **>\n@type elasticsearch\nhost a b\n</match>\n")
    done = run(*argv, str(tmp_path / "fluent.conf"))
    assert done.returncode == 1
    assert "would not be taken by the agent: logs.sinks.0.elasticsearch.urls.0: " in done.stderr
    done = run(*argv, str(tmp_path / "none.conf"))
    assert "cannot be read: No such file" in done.stderr


def test_a_pod_keeps_its_fluentd_where_nothing_replaces_an_output_of_it(tmp_path: Path) -> None:
    given, changed = tmp_path / "given.yaml", tmp_path / "changed.yaml"
    source = "    <source>\n      @type syslog\n    </source>\n\n    <match app.**>"
    given.write_text(SIDECAR.read_text().replace("    <match app.**>", source))
    argv = (sys.executable, "-m", "nodeagent", "logs", "import", str(given), "--pod-output", str(changed))
    done = run(*argv)
    assert (done.returncode, done.stdout, changed.exists()) == (1, "", False)
    first, *others = done.stderr.splitlines()
    assert first.startswith("nodeagent: lost: fluent.conf:11: <source> @type syslog: is not taken")
    assert not any("lost: " in each for each in others)
    assert "is not written" in others[-1] and "fluent.conf:11" in others[-1] and "--lossy" in others[-1]
    done = run(*argv, "--lossy")
    assert done.returncode == 0, done.stderr
    assert "image: fluent" not in changed.read_text()


def test_several_pods_are_imported_into_one_section(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    other = SIDECAR.read_text().replace("name: app-with-logging", "name: other").replace("app-logs", "other-logs")
    given.write_text(f"{SIDECAR.read_text()}---\n{other.replace('fluentd-config', 'other-config')}")
    done = run(sys.executable, "-m", "nodeagent", "logs", "import", str(given))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("logs:\n") == 1
    assert "nodeagent: Pod default/other: fluent.conf:1: read_from_head" in done.stderr
    assert "name: default-other-elasticsearch" in done.stdout
