"""How the daemon's processes end: what must not go on does not, what must go on does. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_a_worker_that_cannot_give_up_its_privileges_ends() -> None:
    """It has listeners at hand by then: one that went on would carry pods' bytes as root."""
    done = run(
        """
        import os
        from nodeagent.channel import pair
        from nodeagent.errors import KernelError
        from nodeagent.proxy import privilege, worker
        from nodeagent.pulse import Pulses
        import orjson, socket

        def refuse(parent):
            raise KernelError("no CAP_SETUID")

        privilege.drop = refuse
        ours, theirs = pair()
        config = {"node": "node1", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/"}, "telemetry": {"accessLog": {"path": ""}}}
        start = {"op": "start", "worker": 0, "config": config, "node_addresses": [], "supervisor": os.getpid()}
        socket.send_fds(ours, [orjson.dumps(start)], [0, 0])
        worker.main(theirs, Pulses().claim())
        """
    )
    assert done.returncode == 1, done
    assert "this worker cannot start: no CAP_SETUID" in done.stderr
