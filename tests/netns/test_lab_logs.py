"""What a lab's pods write, as it stands on their node: in the runtime's format, rotated as by the kubelet."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab, cri_log
from tests.waiting import eventually

TEXT = """
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  containers:
  - {name: both, command: [sh, -c, "echo out; echo err >&2; printf open; exec sleep infinity"]}
  - {name: long, command: [python3, -c, "import time; print('x' * 100000, flush=True); time.sleep(1e6)"]}
---
apiVersion: v1
kind: Pod
metadata: {name: much, annotations: {lab.nodeagent.io/log-max-bytes: "100000"}}
spec:
  containers: [{name: app, command: [sh, -c, "i=0; while :; do i=$((i+1)); echo $i; done"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "printf 'the last word'"]}]
"""

SHORT = """
apiVersion: v1
kind: Pod
metadata: {name: short}
spec:
  containers: [{name: a, command: [sh, -c, "echo here; exec sleep infinity"]}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(text=TEXT, name="t-lab-logs", nodes=1) as lab:
        yield lab


def test_lines_are_the_runtimes(lab: Lab) -> None:
    folder = lab.log_folder("talks", container="both")
    uid = lab.pod("talks")["metadata"]["uid"]
    assert folder == lab.layout.pod_logs("node1") / f"default_talks_{uid}" / "both"
    lines = eventually(lambda: (found := (folder / "0.log").read_text().splitlines())[1:] and found, "two lines")
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"
    assert sorted(re.sub(f"^{time} ", "", line) for line in lines) == ["stderr F err", "stdout F out"]


def test_a_long_line_is_written_in_parts(lab: Lab) -> None:
    eventually(lambda: lab.log("talks", container="long") == "x" * 100_000 + "\n", "the line is whole")
    tags = [
        line.split(" ")[2]
        for line in (lab.log_folder("talks", container="long") / "0.log").read_text().split("\n")[:-1]
    ]
    assert tags == ["P"] * (len(tags) - 1) + ["F"]
    assert len(tags) >= 7


def test_what_is_said_last_is_there_when_the_container_has_ended(lab: Lab) -> None:
    assert lab.pod("ends")["status"]["phase"] == "Succeeded"
    assert lab.log("ends") == "the last word\n"


def test_much_is_rotated_and_nothing_of_it_is_lost(lab: Lab) -> None:
    folder = lab.log_folder("much")
    eventually(lambda: [path for path in cri_log.files(folder) if path.suffix == ".gz"], "a compressed file")
    numbers = [int(line) for line in lab.log("much").splitlines()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(cri_log.files(folder)) <= cri_log.MAX_FILES


def test_a_pod_is_followed_until_it_is_gone(lab: Lab) -> None:
    lab.apply(text=SHORT)
    folder = lab.log_folder("short")
    argv = [sys.executable, "-m", "nodeagent", "lab", "logs", "-f", "--name", lab.name, "short"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == "here\n"
        lab.delete_pod("short", grace_seconds=0)
        assert follower.wait(60) == 0
    assert folder.exists(), "a pod's logs outlive it for a while: who ships them may not have read them yet"
