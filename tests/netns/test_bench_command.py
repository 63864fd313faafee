"""The benchmark as a command: nothing stays on the machine, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeagent.compare import bench
from nodeagent.lab.layout import Layout
from tests.netns.world import eventually, left_behind

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("lab", "seconds"), [(bench.LABS[0], 0.0), (bench.LABS[1], 0.3), (bench.LABS[2], 4.0)], ids=["at once", "setting up", "measuring"])
def test_interrupted_it_leaves_nothing_and_keeps_what_it_has(lab: str, seconds: float, tmp_path: Path) -> None:
    output = tmp_path / "build" / "bench.json"
    argv = [sys.executable, "-m", "nodeagent.compare", "--seconds", "1", "--rounds", "1", "--output", str(output)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        eventually(Layout(lab).state.exists)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert "interrupted" in told or "ended early" in told, told
    assert "Traceback" not in told
    assert json.loads(output.read_text())["notes"]
    names = (*bench.LABS, bench.SCALE_LAB)
    eventually(lambda: not any(left_behind(name) for name in names), "nothing is left of the labs")  # a killed process takes a moment to vanish


def test_wrong_arguments_are_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "nodeagent.compare", "--rounds", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--rounds: 0: allowed: 1 to 600" in done.stderr
