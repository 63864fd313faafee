"""A daemon begun in the background: who waits for it, and what they are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, sys
from nodeagent.cli import background
from nodeagent.service_manager import ServiceManager
caller = os.getpid()
waiting = background.begin()
assert os.getpid() != caller and os.getsid(0) != os.getsid(caller)
{daemon}
"""
WORKS = "ServiceManager(waiting=waiting).beaten(1.0); print('carries', flush=True)"


@pytest.mark.parametrize(
    ("daemon", "status", "said"),
    [
        (WORKS, 0, ""),
        ("sys.exit(3)", 1, "ended before it carried pods"),
        ("os.kill(os.getpid(), 9)", 1, "the log says"),
    ],
)
def test_the_caller_ends_when_it_works_or_never_will(daemon: str, status: int, said: str) -> None:
    script = SCRIPT.format(daemon=daemon)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done
    assert said in done.stderr
    assert ("carries" in done.stdout) == (status == 0)
