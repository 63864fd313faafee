"""A log that is copied and truncated, and its copies compressed, while the agent is upgraded, its collector killed and
all of it killed: each line is at Elasticsearch, and under one id.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from tests.netns.test_agent_logs import collectors
from tests.netns.world import cluster
from tests.waiting import eventually

SERVER = Path(__file__).parents[1] / "apps" / "bulk.py"
ADDRESS = "172.18.0.11"
"""Of node1: the server stands beside the agent."""
ANSWER_SECONDS = 0.3
"""In which what was sent is not settled."""
LOGS = {
    "containers": "none",
    "sinks": [{"name": "search", "elasticsearch": {"urls": [f"http://{ADDRESS}:9200"], "index": "logs"}}],
    "stopSeconds": 0.1,
}
POD = """
apiVersion: v1
kind: Pod
metadata: {name: writes, annotations: {nodeagent.io/log-files: "varlog/app.log"}}
spec:
  containers:
  - name: app
    command: [sleep, infinity]
    volumeMounts: [{name: varlog, mountPath: /var/log}]
  volumes: [{name: varlog, emptyDir: {}}]
"""


class Application:
    """Numbers its lines, waits for nobody, and has its log copied and truncated where a line ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "app.log"
        self._chance = random.Random(17)
        self._copies = 0
        self.number = 0

    def go_on(self, ended: threading.Event) -> None:
        while not ended.wait(0.02):
            with self._log.open("a") as file:
                for _ in range(20):
                    self.number += 1
                    file.write(f"{self.number:08d} {'x' * (self.number % 50)}\n")
            if self.number % 1000 == 0:
                self._rotate()

    def _rotate(self) -> None:
        self._copies += 1
        copy = self._folder / f"app.log.{self._copies:05d}"
        shutil.copyfile(self._log, copy)
        os.truncate(self._log, 0)
        if self._chance.random() < 0.3:
            beside = self._folder / "compressed"
            beside.write_bytes(gzip.compress(copy.read_bytes()))
            beside.rename(f"{copy}.gz")
            copy.unlink()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-logs-upgrade", POD, agent={"logs": LOGS}, nodes=1) as lab:
        yield lab


@pytest.fixture(scope="module")
def documents(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of what a server of ``_bulk`` on the node was sent."""
    path = tmp_path_factory.mktemp("bulk") / "documents"
    path.touch()
    server = lab.popen("node1", [sys.executable, str(SERVER), ADDRESS, "9200", str(path), str(ANSWER_SECONDS)])
    try:
        yield path
    finally:
        server.kill()
        server.wait()


@contextmanager
def writing(folder: Path) -> Iterator[Application]:
    application = Application(folder)
    ended = threading.Event()
    thread = threading.Thread(target=application.go_on, args=(ended,))
    thread.start()
    try:
        yield application
    finally:
        ended.set()
        thread.join()


class Sent:
    """What the server was sent: under which ids each line came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.ids: dict[int, set[str]] = {}

    def has(self, number: int) -> bool:
        """Read on; return whether so many lines are there."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            rows, _, _ = file.read().rpartition(b"\n")
        self._read += len(rows) + 1 if rows else 0
        for row in rows.splitlines():
            document = json.loads(row)
            self.ids.setdefault(int(document["source"]["log"][:8]), set()).add(document["action"]["_id"])
        return len(self.ids) >= number


def more(path: Path) -> None:
    """Wait until something was sent that was not."""
    size = path.stat().st_size
    eventually(lambda: path.stat().st_size > size, "records")


@pytest.mark.timeout(600)
def test_each_line_comes_under_one_id_whoever_is_upgraded_or_killed(lab: Lab, documents: Path) -> None:
    agent = lab.agent("node1")
    uid = lab.pod("writes")["metadata"]["uid"]
    with writing(lab.layout.volumes("node1", uid) / "varlog") as application:
        more(documents)
        agent.succeed(wait_seconds=120)
        more(documents)
        for _ in range(3):
            (pid,) = eventually(lambda: collectors(lab), "the collector")
            os.kill(pid, signal.SIGKILL)
            more(documents)
        agent.kill()
        agent.start(wait_seconds=120)
        more(documents)
    sent = Sent(documents)
    eventually(lambda: sent.has(application.number), "no line is missing", 300)
    assert sent.ids.keys() == set(range(1, application.number + 1))
    twice = sorted(number for number, names in sent.ids.items() if len(names) > 1)
    assert not twice, f"{len(twice)} of {application.number} lines have two ids, {twice[:10]} among them"
