"""Logs end to end: what pods write on their standard streams and into their volumes reaches the sinks, once
each, with whose it is, whatever dies meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.lab import Lab
from nodeagent.logs.priority import NICENESS
from tests.netns.world import Samples, admin, cluster, control, get, memory, parent_of, scrape
from tests.waiting import eventually

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: talks, labels: {app: talks, app.kubernetes.io/part-of: shop}}
spec:
  containers:
  - {name: app, command: [sh, -c, "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"]}
---
apiVersion: v1
kind: Pod
metadata: {name: writes, annotations: {nodeagent.io/log-files: "varlog/app/*.log, ../etc/passwd"}}
spec:
  containers:
  - name: app
    command: [sh, -c, 'mkdir -p /var/log/app; ln -s /etc/passwd /var/log/app/evil.log; mkfifo /var/log/app/fifo.log;
      i=0; while :; do i=$((i+1)); echo "{\\"n\\": $i}" >> /var/log/app/a.log; sleep 0.05; done']
    volumeMounts: [{name: varlog, mountPath: /var/log}]
  volumes: [{name: varlog, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [seq, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: silent, annotations: {fluentbit.io/exclude: "true"}}
spec:
  containers: [{name: app, command: [sh, -c, "echo secret; exec sleep infinity"]}]
"""


def collected(lab: Lab, node: str = "node1") -> Path:
    return lab.layout.node(node) / "collected" / "all.jsonl"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node, whose agent delivers into a file of the node."""
    path = "/run/nodeagent/lab/t-logs/node1/collected/all.jsonl"
    agent = {"logs": {"sinks": [{"name": "all", "file": {"path": path}}], "stopSeconds": 2}}
    with cluster("t-logs", PODS, agent=agent, nodes=1) as lab:
        yield lab


def records(lab: Lab) -> list[dict[str, Any]]:
    path = collected(lab)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def of(lab: Lab, pod: str) -> list[dict[str, Any]]:
    return [each for each in records(lab) if each["kubernetes"]["pod_name"] == pod]


def collector(lab: Lab) -> int:
    """Return the pid of the process that has the folder of positions open, once there is one."""

    def alone() -> int:
        found = collectors(lab)
        assert len(found) == 1, found
        return found[0]

    return eventually(alone, "there is one collector")


def collectors(lab: Lab) -> list[int]:
    """Return the pids of the agent's processes that have the folder of positions open."""
    agent = lab.agent("node1")
    folder = str(lab.layout.node("node1") / "logs")
    return [pid for pid in agent.processes() if parent_of(pid) == agent.pid and folder in opened(pid)]


def opened(pid: int) -> set[str]:
    """Return the paths of what the process has open."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(each))
    return found


def test_output_arrives_with_whose_it_is(lab: Lab) -> None:
    found = eventually(lambda: len(rows := of(lab, "talks")) > 5 and rows, "records of the pod's output")
    first = found[0]
    uid = lab.pod("talks")["metadata"]["uid"]
    assert first["log"] == "line 1"
    assert first["stream"] == "stdout"
    assert first["kubernetes"] == {
        "namespace_name": "default",
        "pod_name": "talks",
        "pod_id": uid,
        "container_name": "app",
        "host": "node1",
        "labels": {"app": "talks", "app_kubernetes_io_part-of": "shop"},
    }


def test_files_of_a_volume_arrive_and_nothing_else_that_is_there(lab: Lab) -> None:
    found = eventually(lambda: len(rows := of(lab, "writes")) > 5 and rows, "records of the pod's file")
    assert [each["n"] for each in found[:5]] == [1, 2, 3, 4, 5]
    assert {each.get("log_file") for each in found} == {"varlog/app/a.log"}


def test_who_asks_to_be_left_out_is(lab: Lab) -> None:
    eventually(lambda: len(of(lab, "talks")) > 5)
    assert of(lab, "silent") == []


def test_what_is_refused_is_said_by_name(lab: Lab) -> None:
    refused = eventually(
        lambda: len(rows := admin(lab, "node1", "/logs")["refused"]) >= 3 and rows, "what is not read of the pod"
    )
    words = {each["refusal"] for each in refused if each["pod"] == "default/writes"}
    assert any("nodeagent.io/log-files: '../etc/passwd'" in each for each in words), words
    assert any("evil.log" in each and "a symbolic link" in each for each in words), words
    assert any("fifo.log" in each and "a FIFO" in each for each in words), words
    status, text = get(lab, "node1", 15021, "/ready")
    assert status == 200
    assert "warning: logs of default/writes: " in text


def test_metrics_account_for_every_record(lab: Lab) -> None:
    """Of a pod that has ended, what was read was offered to its sink, and all of that was delivered."""
    pod = {"namespace": "default", "pod": "ends"}
    names = ("lines_read", "records", "records_offered", "records_delivered")
    wanted = dict.fromkeys(names, 1000.0)
    eventually(lambda: counted(lab, names, pod) == wanted, f"1000 lines are accounted for: {counted(lab, names, pod)}")
    assert [each["log"] for each in of(lab, "ends")] == [str(number) for number in range(1, 1001)]
    others = ("records_dropped", "records_dead_lettered", "records_filtered", "parse_failures")
    assert set(counted(lab, others, pod).values()) == {0.0}
    assert counted(lab, names, {"namespace": "default", "pod": "silent"}) == dict.fromkeys(names, 0.0)


def counted(lab: Lab, names: Iterable[str], labels: Mapping[str, str]) -> dict[str, float]:
    samples = scrape(lab)
    return {name: samples.sum(f"nodeagent_log_{name}_total", **labels) for name in names}


def test_a_collector_that_dies_is_replaced_and_goes_on(lab: Lab) -> None:
    before = len(of(lab, "talks"))
    os.kill(collector(lab), signal.SIGKILL)
    eventually(lambda: len(of(lab, "talks")) > before + 5, "records after its death")
    numbers = {each["log"] for each in of(lab, "talks")}
    assert {f"line {number}" for number in range(1, len(numbers) + 1)} == numbers
    assert scrape(lab).sum("nodeagent_log_collector_restarts_total") == 1
    eventually(lambda: unaccounted(scrape(lab)) == 0, "offered is delivered, waiting or returned")


def unaccounted(samples: Samples) -> float:
    """Return how many records offered to the sink are in none of the places where they may be."""
    settled = ("delivered", "dropped", "dead_lettered", "returned")
    places = sum(samples.sum(f"nodeagent_log_records_{place}_total") for place in settled)
    offered = samples.sum("nodeagent_log_records_offered_total")
    assert offered > 10
    return offered - places - samples.sum("nodeagent_log_records_waiting")


def test_it_survives_the_death_of_control(lab: Lab) -> None:
    pid = collector(lab)
    seen = len(of(lab, "talks"))
    os.kill(control(lab, "node1"), signal.SIGKILL)
    lab.agent("node1").wait_ready()
    before = len(of(lab, "talks"))
    eventually(lambda: len(of(lab, "talks")) > before + 5, "records after control's death")
    assert collector(lab) == pid
    lines = [each["log"] for each in of(lab, "talks")][seen:]
    assert lines == list(dict.fromkeys(lines)), "files that another control tells of are not read again"


def test_files_and_how_far_they_are_read_are_told(lab: Lab) -> None:
    rows = eventually(lambda: admin(lab, "node1", "/logs")["files"], "the files")
    (talks,) = (each for each in rows if each["pod"] == "talks")
    assert (talks["namespace"], talks["container"], talks["file"], talks["state"]) == (
        "default",
        "app",
        "0.log",
        "following",
    )
    assert 0 < talks["settled"] <= talks["size"]
    assert {each["path"] for each in rows if each["pod"] == "writes"} == {"", "varlog/app/a.log"}
    eventually(lambda: scrape(lab).sum("nodeagent_log_files") >= 3)


def test_a_daemon_that_is_stopped_and_started_reads_on_where_it_was(lab: Lab) -> None:
    """Everything once: what was read is delivered before it ends, and what came meanwhile is read."""
    lab.agent("node1").stop()
    before = len(of(lab, "talks"))
    lab.agent("node1").start()
    eventually(lambda: len(of(lab, "talks")) > before + 5, "records after the start")
    lines = [each["log"] for each in of(lab, "talks")]
    last = int(lines[-1].removeprefix("line "))
    assert {f"line {number}" for number in range(1, last + 1)} <= set(lines)
    assert lines[before - 5 :] == list(dict.fromkeys(lines[before - 5 :]))


def test_a_daemon_that_takes_over_reads_on_where_its_predecessor_was(lab: Lab) -> None:
    before = collector(lab)
    agent = lab.agent("node1")
    agent.succeed()
    eventually(lambda: not Path(f"/proc/{before}").exists(), "the predecessor's collector has ended")
    seen = len(of(lab, "talks"))
    eventually(lambda: len(of(lab, "talks")) > seen + 5, "records by the successor's")
    assert collector(lab) != before
    lines = [each["log"] for each in of(lab, "talks")]
    last = int(lines[-1].removeprefix("line "))
    assert {f"line {number}" for number in range(1, last + 1)} <= set(lines)
    assert lines[seen - 5 :] == list(dict.fromkeys(lines[seen - 5 :]))


def test_a_pod_that_is_gone_leaves_nothing_behind(lab: Lab) -> None:
    folder = lab.log_folder("ends").parent
    lab.delete_pod("ends")
    shutil.rmtree(folder)  # as the kubelet does, later
    eventually(lambda: not [each for each in admin(lab, "node1", "/logs")["files"] if each["pod"] == "ends"])


def test_it_has_no_privilege_and_lets_the_proxy_go_first(lab: Lab) -> None:
    pid = collector(lab)
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, lab.agent("node1").pid) + NICENESS
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert os.sched_getscheduler(lab.agent("node1").pid) == os.SCHED_OTHER
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^Uid:\s+1337\s+1337\s+1337\s+1337$", status, re.MULTILINE)
    assert re.search(r"^Cap(?:Eff|Prm):\s+0+$", status, re.MULTILINE)


def test_a_reload_goes_by_the_section_as_it_is_then(lab: Lab) -> None:
    agent = lab.agent("node1")
    path = agent.config_path
    good = yaml.safe_load(path.read_text())
    before = collector(lab)
    rules = [{"redact": {"matches": "line", "with": "LINE"}}]
    path.write_text(yaml.safe_dump({**good, "logs": {**good["logs"], "rules": rules}}))
    os.kill(agent.pid, signal.SIGHUP)
    eventually(lambda: of(lab, "talks")[-1]["log"].startswith("LINE "), "records by the new rule")
    assert not Path(f"/proc/{before}").exists()
    path.write_text(yaml.safe_dump({**good, "logs": {**good["logs"], "rules": [{"redact": {"matches": "["}}]}}))
    os.kill(agent.pid, signal.SIGHUP)
    words = "logs.rules.0.redact.matches"
    eventually(lambda: words in get(lab, "node1", 15021, "/ready")[1], "what is wrong is said")
    command = [sys.executable, "-m", "nodeagent", "reload", "--admin", str(agent.admin_socket)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (1, "")
    assert words in told.stderr
    seen = len(of(lab, "talks"))
    eventually(lambda: len(of(lab, "talks")) > seen + 5, "records by the last good rule")
    assert of(lab, "talks")[-1]["log"].startswith("LINE ")
    path.write_text(yaml.safe_dump(good))
    os.kill(agent.pid, signal.SIGHUP)
    eventually(lambda: of(lab, "talks")[-1]["log"].startswith("line "), "records without the rule")


def test_what_was_reloaded_is_in_force_with_the_next_control_too(lab: Lab) -> None:
    agent = lab.agent("node1")
    good = yaml.safe_load(agent.config_path.read_text())
    out = collected(lab).with_name("renamed.jsonl")
    renamed = [{"name": "renamed", "file": {"path": str(out)}}]
    agent.config_path.write_text(yaml.safe_dump({**good, "logs": {**good["logs"], "sinks": renamed}}))
    os.kill(agent.pid, signal.SIGHUP)
    eventually(lambda: out.exists() and out.read_text().count("\n") > 5, "records by the section as it is now")
    os.kill(control(lab, "node1"), signal.SIGKILL)
    agent.wait_ready()
    seen = out.read_text().count("\n")
    eventually(lambda: out.read_text().count("\n") > seen + 20, "records by the next control's")
    assert {each["name"] for each in admin(lab, "node1", "/logs")["sinks"]} == {"renamed"}
    agent.config_path.write_text(yaml.safe_dump(good))
    os.kill(agent.pid, signal.SIGHUP)
    seen = len(of(lab, "talks"))
    eventually(lambda: len(of(lab, "talks")) > seen, "records as before")


def test_full_disks_are_said_and_nothing_is_lost(lab: Lab) -> None:
    """The sink's and the buffer's at once."""
    agent = lab.agent("node1")
    folders = [lab.layout.node("node1") / "logs", collected(lab).parent]
    agent.stop()
    with ExitStack() as stack:
        stack.callback(agent.start)
        for folder in folders:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
            stack.callback(subprocess.run, ["umount", folder], check=True)
            with suppress(OSError):
                (folder / "filler").write_bytes(bytes(2 << 20))
        stack.callback(agent.stop)
        agent.start()
        eventually(lambda: any("No space left" in each for each in complaints(lab, "talks")), "get logs says so")
        eventually(
            lambda: any("buffer takes no more" in each for each in complaints(lab, "talks")), "and of the buffer"
        )
        eventually(lambda: scrape(lab).sum("nodeagent_log_sink_failing", sink="all") == 1, "a metric says so")
        eventually(lambda: "No space left" in get(lab, "node1", 15021, "/ready")[1], "readiness warns")
        pid = collector(lab)
        for folder in folders:
            (folder / "filler").unlink()
        eventually(lambda: len(of(lab, "talks")) > 50, "records")
        eventually(lambda: scrape(lab).sum("nodeagent_log_sink_failing", sink="all") == 0, "it is well again")
        eventually(lambda: not complaints(lab, "talks") and scrape(lab).sum("nodeagent_log_troubles") == 0)
        assert collector(lab) == pid
        numbers = [int(each["log"].removeprefix("line ")) for each in of(lab, "talks")]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        eventually(lambda: unaccounted(scrape(lab)) == 0, "offered is delivered, or waiting")


def complaints(lab: Lab, pod: str) -> list[str]:
    """Return what the rows of `get logs` say of the sinks of *pod*."""
    return [each["why"] for each in admin(lab, "node1", "/logs/files") if each.get("pod") == pod and each.get("why")]


def test_reading_costs_little_memory(lab: Lab) -> None:
    """What the whole daemon has more with logs than without, on a node whose pods write all the time."""
    agent = lab.agent("node1")
    with_logs = settled_memory(lab, 4)
    agent.stop()
    without = replace(agent, overlay={name: value for name, value in agent.overlay.items() if name != "logs"})
    without.start()
    try:
        alone = settled_memory(lab, 3)
    finally:
        without.stop()
        agent.start()
    print(f"memory: {alone / 1e6:.1f} MB without logs, {(with_logs - alone) / 1e6:.1f} MB more with them")
    assert with_logs - alone < 40e6


def settled_memory(lab: Lab, processes: int) -> int:
    """Return the bytes of all processes of the daemon: supervisor, control, worker, and the collector where it has
    one; once the loader has ended.
    """
    agent = lab.agent("node1")
    eventually(lambda: len(agent.processes()) == processes, f"{processes} processes")
    scrape(lab)
    return memory(agent.processes())
