"""System calls of the lab, in a process of its own where they change who calls."""

from __future__ import annotations

import json
import subprocess
import sys

TELLS = """
import json, os
from pathlib import Path
from nodeagent.lab.linux import step_behind
step_behind()
group = Path("/proc/self/autogroup")
said = group.read_text().split()[-1] if group.exists() else "19"
print(json.dumps([os.sched_getscheduler(0) == os.SCHED_BATCH, os.getpriority(os.PRIO_PROCESS, 0), said]))
"""


def test_who_steps_behind_is_as_nice_as_can_be_with_its_session() -> None:
    """A session has a niceness of its own where the kernel schedules by these."""
    done = subprocess.run(
        [sys.executable, "-c", TELLS], capture_output=True, text=True, check=True, start_new_session=True, timeout=120
    )
    assert json.loads(done.stdout) == [True, 19, "19"]
