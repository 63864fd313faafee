"""The demonstration of the README: it holds what it claims, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.netns.world import left_behind

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "nodeagent.lab.demo"]
LABS = ("demo-direct", "demo")


def test_the_demo_holds_and_cleans_up() -> None:
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything held" in done.stdout
    with_agents = re.search(r"with agents +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)", done.stdout)
    assert with_agents, done.stdout
    packets, records, marked, plaintext = (int(text.replace(",", "")) for text in with_agents.groups())
    assert packets and records
    assert marked == plaintext == 0
    assert not any(left_behind(name) for name in LABS)


def test_interrupted_it_leaves_nothing() -> None:
    with subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode != 0, told
    assert "Traceback" not in told
    assert not any(left_behind(name) for name in LABS)
