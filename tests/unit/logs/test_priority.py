"""The collector's place behind the proxy, in a process that is forked as the daemon forks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from nodeagent.logs.priority import NICENESS

TELLS = """
import json, os, sys
from nodeagent.logs.priority import give_way
def tell():
    print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.getsid(0)]), flush=True)
if "refused" in sys.argv:
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")
    os.sched_setscheduler = refuse
if os.fork() == 0:
    give_way()
    tell()
    os._exit(0)
os.wait()
tell()
"""


def told(*arguments: str) -> list[list[int]]:
    """Return niceness, policy and session of the forked process, and of the one that it was forked from."""
    argv = [sys.executable, "-c", TELLS, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_has_what_who_forked_it_leaves_of_their_session() -> None:
    """Between two sessions nobody is idle, where kernels schedule by these."""
    forked, before = told()
    assert forked == [min(before[0] + NICENESS, 19), os.SCHED_IDLE, before[2]]
    assert before[1] == os.sched_getscheduler(0)


def test_where_that_is_refused_it_is_as_nice_as_can_be() -> None:
    forked, before = told("refused")
    assert forked == [min(before[0] + NICENESS, 19), before[1], before[2]]
