"""The collector's place behind the proxy, in a process that is forked as the daemon forks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.priority import AUTOGROUP, NICENESS, SESSION_NICENESS

TELLS = """
import json, os, sys
from pathlib import Path
from nodeagent.logs import priority
priority.AUTOGROUP = Path(sys.argv[1])
if os.fork() == 0:
    priority.give_way()
    print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.getsid(0) == os.getpid()]))
    sys.stdout.flush()
    os._exit(0)
os.wait()
print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]))
"""


def told(autogroup: Path) -> list[Any]:
    """Return what the forked process, and the one that it was forked from, are."""
    argv = [sys.executable, "-c", TELLS, str(autogroup)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_is_behind_who_forked_it_in_a_session_of_its_own(tmp_path: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    written = tmp_path / "autogroup"
    nicer = min(before + NICENESS, 19)
    assert told(written) == [[nicer, os.SCHED_BATCH, True], [before, os.sched_getscheduler(0)]]
    assert written.read_text() == str(SESSION_NICENESS)


@pytest.mark.parametrize("autogroup", ["away/autogroup", "."])
def test_a_kernel_without_autogroups_is_as_good(tmp_path: Path, autogroup: str) -> None:
    assert told(tmp_path / autogroup)[0][1:] == [os.SCHED_BATCH, True]


def test_the_session_s_niceness_is_the_kernel_s_file() -> None:
    """proc(5): /proc/PID/autogroup."""
    assert Path("/proc/self/autogroup") == AUTOGROUP
