"""The article's pod with a Fluentd sidecar, imported and run: without Fluentd, by one annotation, its records come
to the index that Fluentd wrote to. What users see of it on the way: ``get logs`` and ``nodeagent logs``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodeagent.lab import Lab
from tests.netns.world import cluster
from tests.waiting import eventually

SIDECAR = Path(__file__).parents[1] / "unit" / "logs" / "fluentd" / "sidecar.yaml"
NAME = "t-logs-seed"
SERVER = Path(__file__).parents[1] / "apps" / "bulk.py"
ADDRESS = "172.18.0.11"
"""Of node1: the server stands beside the agent."""
COMMAND = [
    "sh",
    "-c",
    'i=0; while :; do i=$((i+1)); echo "{\\"n\\": $i}" >> /var/log/app/a.log; echo said $i; sleep 0.02; done',
]


def nodeagent(*arguments: str) -> str:
    argv = [sys.executable, "-m", "nodeagent", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The import's own output, applied: its section of agent.yaml, and its pod with a program in place of the image."""
    changed = tmp_path_factory.mktemp("seed") / "pod.yaml"
    host = f"FLUENT_ELASTICSEARCH_HOST={ADDRESS}"
    section = yaml.safe_load(nodeagent("logs", "import", str(SIDECAR), "--env", host, "--pod-output", str(changed)))
    pod, _ = yaml.safe_load_all(changed.read_text())
    (app,) = pod["spec"]["containers"]
    assert app.pop("image") == "my-app:latest"
    app["command"] = COMMAND
    section["logs"] |= read_by_fluentd(tmp_path_factory.mktemp("node"))
    with cluster(NAME, yaml.safe_dump(pod), agent=section, nodes=1) as lab:
        yield lab


def read_by_fluentd(folder: Path) -> dict[str, object]:
    """Make a file of the node that a Fluentd has read in part, and return what agent.yaml says of it."""
    log = folder / "node.log"
    log.write_text("delivered by Fluentd\nnot yet delivered\n")
    positions = folder / "fluentd.pos"
    positions.write_text(f"{log}\t{len('delivered by Fluentd') + 1:016x}\t{log.stat().st_ino:016x}\n")
    return {"node": {"files": [{"path": str(log)}]}, "fluentdPositions": [str(positions)]}


@pytest.fixture(scope="module")
def documents(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server of ``_bulk`` on the node, and the file of what it was sent."""
    path = tmp_path_factory.mktemp("bulk") / "documents"
    path.touch()
    server = lab.popen("node1", [sys.executable, str(SERVER), ADDRESS, "9200", str(path)])
    try:
        yield path
    finally:
        server.kill()
        server.wait()


def sent(path: Path) -> list[dict[str, dict[str, object]]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def of_the_pod(path: Path) -> list[dict[str, dict[str, object]]]:
    return [each for each in sent(path) if "n" in each["source"]]


def test_its_records_come_to_its_index(lab: Lab, documents: Path) -> None:
    found = eventually(lambda: (all_ := of_the_pod(documents))[20:] and all_, "records at the server")
    assert {each["action"]["_index"] for each in found} == {"app-logs"}
    numbers = [each["source"]["n"] for each in found]
    assert numbers == list(range(1, len(numbers) + 1))
    ids = [each["action"]["_id"] for each in found]
    assert len(set(ids)) == len(ids)
    kubernetes = found[0]["source"]["kubernetes"]
    assert isinstance(kubernetes, dict)
    uid = lab.pod("app-with-logging")["metadata"]["uid"]
    assert (kubernetes["namespace_name"], kubernetes["pod_name"], kubernetes["pod_id"]) == (
        "default",
        "app-with-logging",
        uid,
    )


def test_its_files_are_shown(lab: Lab, documents: Path) -> None:
    def row() -> dict[str, object] | None:
        rows = json.loads(nodeagent("get", "logs", "--name", NAME, "-o", "json"))
        return next((each for each in rows if each["path"] == "log-volume/a.log" and each["settled"]), None)

    found = eventually(row, "a file of which something is settled")
    assert (found["pod"], found["sinks"]) == ("app-with-logging", ["elasticsearch"])


def test_its_lines_are_printed(lab: Lab) -> None:
    of_file = nodeagent("logs", "--name", NAME, "app-with-logging", "-c", "log-volume/a.log").splitlines()
    assert of_file[:2] == ['{"n": 1}', '{"n": 2}']
    of_output = nodeagent("logs", "--name", NAME, "app-with-logging", "-c", "app", "--grep", "^said 1$")
    assert of_output == "said 1\n"


def test_a_file_of_the_node_goes_on_where_fluentd_was(lab: Lab, documents: Path) -> None:
    found = eventually(lambda: [each for each in sent(documents) if "n" not in each["source"]], "the node's record")
    assert [each["source"]["log"] for each in found] == ["not yet delivered"]
