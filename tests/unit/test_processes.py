"""How the daemon's processes end: what must not go on does not, what must go on does. Each in a process of its own."""

from __future__ import annotations

import json
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
        import orjson, socket

        def refuse(parent):
            raise KernelError("no CAP_SETUID")

        privilege.drop = refuse
        ours, theirs = pair()
        config = {"node": "node1", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/"}, "telemetry": {"accessLog": {"path": ""}}}
        start = {"op": "start", "worker": 0, "config": config, "node_addresses": [], "supervisor": os.getpid()}
        socket.send_fds(ours, [orjson.dumps(start)], [0])
        worker.main(theirs)
        """
    )
    assert done.returncode == 1, done
    assert "this worker cannot start: no CAP_SETUID" in done.stderr


SUPERVISED = """
    import json, os, signal, socket, sys, time
    import orjson
    from nodeagent import supervisor
    from nodeagent.channel import pair

    def receive(end):
        end.setblocking(True)
        payload, descriptors, _, _ = socket.recv_fds(end, 65536, 10)
        return orjson.loads(payload), descriptors

    def control(config, end):
        kept = []
        while True:
            message, descriptors = receive(end)
            if message["op"] == "kept":
                kept.append(message["key"])
            if message["op"] == "begin":
                break
        if message["orphans"]:
            print(json.dumps({"kept": kept, "orphans": len(message["orphans"])}), flush=True)
            return  # a control that ends well ends the daemon, and its workers with it
        ours, theirs = pair()
        ours.setblocking(True)
        socket.send_fds(end, [orjson.dumps({"op": "fork", "number": 1})], [theirs.fileno()])
        assert receive(end)[0]["op"] == "forked"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socket.send_fds(end, [orjson.dumps({"op": "keep", "keys": ["uid/inbound/4/0"]})], [listener.fileno()])
        time.sleep(0.2)
        raise SystemExit(1)

    def worker(end):
        signal.pause()

    sys.exit(supervisor.main(None, control, worker))
"""


def test_a_control_that_fails_is_succeeded_with_what_it_left() -> None:
    """The workers go on, and the listeners are handed to the successor: a failure of control is no stop of the daemon."""
    done = run(SUPERVISED)
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == {"kept": ["uid/inbound/4/0"], "orphans": 1}
    assert "control died (status 1); it is started again" in done.stderr


def test_a_control_that_never_comes_up_ends_the_daemon_with_its_status() -> None:
    done = run(SUPERVISED.replace("kept = []", "raise SystemExit(3)"))
    assert done.returncode == 3, done
