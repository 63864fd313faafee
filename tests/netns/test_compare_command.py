"""``nodeagent compare`` as a command: what is measured is kept and nothing stays on the machine,
whatever happens in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeagent.compare import labs, measure, run
from nodeagent.compare.logs.beside import BESIDE_LAB
from nodeagent.compare.run import ComparisonPlan, Results
from nodeagent.compare.scale import SCALE_LAB
from nodeagent.compare.switches import SWITCH_LAB
from nodeagent.lab import Lab
from nodeagent.lab.layout import Layout
from nodeagent.places.annotation import CGROUP
from tests.netns.world import client, left_behind, server
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)  # whole comparisons, short ones
COMMAND = [sys.executable, "-m", "nodeagent", "compare"]
LABS = (*(setup.lab for setup in labs.SETUPS), SCALE_LAB, SWITCH_LAB, BESIDE_LAB)


def nothing_is_left() -> None:
    # a killed process takes a moment to vanish
    eventually(lambda: not any(left_behind(name) for name in LABS), "nothing is left of the labs")


def compare(*options: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=timeout, check=False)


def test_the_result_is_one_json_object_and_a_page(tmp_path: Path) -> None:
    modes = ("--modes", "direct,nodeagent,haproxy")
    done = compare(
        *modes,
        "--workloads",
        "http,tcp",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--rates",
        "50",
        "--scale",
        "1,2",
        "--no-switches",
        "--report",
        str(tmp_path / "report"),
        "-o",
        "json",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {(run["mode"], run["workload"], run["load"]) for run in told["runs"]} >= {
        ("direct", "http", "closed"),
        ("nodeagent", "tcp", "closed"),
    }
    assert {(run["mode"], run["load"]) for run in told["runs"] if run["rate"] == 50} == {
        ("direct", "open"),
        ("nodeagent", "open"),
    }
    assert [(each["mode"], each["pods"]) for each in told["scale"]] == [("nodeagent", 1), ("nodeagent", 2)]
    assert told["missing"] == []
    assert "<svg" in (tmp_path / "report" / "index.html").read_text()
    nothing_is_left()


@pytest.mark.parametrize(
    ("lab", "seconds"), [(LABS[0], 0.0), (LABS[1], 0.3), (LABS[2], 6.0)], ids=["at once", "setting up", "measuring"]
)
def test_interrupted_it_leaves_nothing_and_keeps_what_it_has(lab: str, seconds: float, tmp_path: Path) -> None:
    output = tmp_path / "build" / "compare.json"
    argv = [
        *COMMAND,
        "--modes",
        "direct,nodeagent,nodeagent-kernel",
        "--workloads",
        "http",
        "--seconds",
        "1",
        "--rounds",
        "9",
        "--output",
        str(output),
    ]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            eventually(Layout(lab).state.exists, "the lab is made", seconds=60)
            time.sleep(seconds)  # wherever it is then
        finally:
            os.killpg(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert "interrupted" in told or "ended early" in told, told
    assert "Traceback" not in told
    assert json.loads(output.read_text())["notes"]
    nothing_is_left()


def test_a_mode_that_fails_in_the_middle_is_named_and_the_others_go_on() -> None:
    results = Results()

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("haproxy: http, 32"):
            group = Path(Lab.open(LABS[0]).pod("client", "plain")["metadata"]["annotations"][CGROUP])
            for pid in measure.of_program(group, lambda name: name == "haproxy"):
                os.kill(pid, signal.SIGKILL)

    run.run(ComparisonPlan(("direct", "haproxy"), ("http",), rounds=2, seconds=1), results, progress)
    (missing,) = results.missing
    assert missing["what"] == "haproxy, from http in round 1 on"
    assert "refused" in missing["why"]
    counts = {(cell.mode.name, cell.connections): len(samples) for cell, samples in results.samples.items()}
    assert counts == {("direct", 1): 2, ("direct", 32): 2, ("haproxy", 1): 1}
    nothing_is_left()


def test_a_mode_that_does_not_come_up_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.lab.programs.envoy", lambda: None)
    results = Results()
    run.run(
        ComparisonPlan(("direct", "envoy-hop", "envoy"), ("http",), rounds=1, seconds=1), results, lambda *step: None
    )
    assert [missing["what"] for missing in results.missing] == ["envoy-hop", "envoy"]
    assert all("nodeagent[compare]" in missing["why"] for missing in results.missing)
    assert {cell.mode.name for cell in results.samples} == {"direct"}
    nothing_is_left()


def test_on_ones_own_manifest(tmp_path: Path) -> None:
    path = tmp_path / "app.yaml"
    path.write_text(client("asking", "node1") + server("web", "node2"))
    asked = ("--manifest", str(path), "--from", "asking", "--url", "http://web/about")
    done = compare(*asked, "--modes", "direct,nodeagent,envoy", "--rounds", "1", "--seconds", "1", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {run["mode"] for run in told["runs"]} == {"direct", "nodeagent", "envoy"}
    assert {run["workload"] for run in told["runs"]} == {"manifest"}
    assert told["missing"] == []
    assert not any(run["errors"] for run in told["runs"])
    nothing_is_left()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "0 is not in the range"),
        (["--modes", "direct,istio"], "'direct,istio': allowed: some of direct, haproxy"),
        (["--workloads", ""], "'': allowed: some of http"),
        (["--rates", "many"], "'many': allowed: none, or numbers from 1 to 200000"),
        (["--manifest", "x.yaml"], "--manifest, --from and --url go together"),
        (["--manifest", "x.yaml", "--from", "a", "--url", "https://b/"], "allowed: http://HOST"),
        (["--against", "/dev/null"], "not a comparison's JSON"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    done = compare(*options)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
