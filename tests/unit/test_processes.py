"""How the daemon's processes end: what must not go on does not, what must go on does. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_no_other_process_of_its_user_reads_a_worker() -> None:
    """Pods' keys are in its memory, its sockets are theirs; it itself goes on loading certificates
    through /proc/self/fd.
    """
    done = run(
        """
        import os, ssl, tempfile
        from pathlib import Path
        from nodeagent.identity.ca import CertificateAuthority
        from nodeagent.identity.tls import server_context
        from nodeagent.mesh.entries import SpiffeId
        from nodeagent.proxy import privilege

        certificate = CertificateAuthority.open_or_create(Path(tempfile.mkdtemp()) / "ca", "d").issue(SpiffeId("spiffe://d/ns/n/sa/a"), 60)
        dropped, told = os.pipe()
        stay, go = os.pipe()
        parent = os.getpid()
        worker = os.fork()
        if worker == 0:
            privilege.drop(parent, 1337)
            server_context(certificate)
            os.write(told, b"x")
            os.read(stay, 1)
            os._exit(0)
        assert os.read(dropped, 1) == b"x"
        reader = os.fork()
        if reader == 0:
            os.setgroups([])
            os.setresgid(1337, 1337, 1337)
            os.setresuid(1337, 1337, 1337)
            for what in ("mem", "environ", "maps"):
                try:
                    open(f"/proc/{worker}/{what}", "rb").read(1)
                    print("reads", what)
                except PermissionError:
                    pass
            try:
                print("sees", os.listdir(f"/proc/{worker}/fd"))
            except PermissionError:
                print("sees nothing")
            os._exit(0)
        os.waitpid(reader, 0)
        os.write(go, b"x")
        assert os.waitpid(worker, 0)[1] == 0
        """  # noqa: E501
    )
    assert (done.returncode, done.stdout) == (0, "sees nothing\n"), done


def test_a_worker_that_cannot_give_up_its_privileges_ends() -> None:
    """It has listeners at hand by then: one that went on would carry pods' bytes as root."""
    done = run(
        """
        import os
        from nodeagent.channel import pair
        from nodeagent.errors import KernelError
        from nodeagent.proxy import privilege, serving, worker
        from nodeagent.pulse import Pulses
        import socket
        from nodeagent.wire import encode
        from nodeagent.messages import StartWorker

        serving.OriginalDestinations = print  # no map is there

        def refuse(parent, user):
            raise KernelError("no CAP_SETUID")

        privilege.drop = refuse
        ours, theirs = pair()
        config = {"node": "node1", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/"}, "telemetry": {"accessLog": {"path": ""}}}
        payload, descriptors = encode(StartWorker(0, config, (), os.getpid(), 0, 0))
        socket.send_fds(ours, [payload], descriptors)
        worker.main(theirs, Pulses().claim())
        """  # noqa: E501
    )
    assert done.returncode == 1, done
    assert "this worker cannot start: no CAP_SETUID" in done.stderr


def test_signals_to_the_whole_group_end_no_worker() -> None:
    """Input: a terminal that closes, Ctrl-C, ``systemctl kill``: each process of the daemon gets the signal. Verdict:
    a worker leaves it to the supervisor, and serves on.
    """
    done = run(
        """
        import asyncio, os, signal
        from nodeagent.channel import pair
        from nodeagent.logs.collector import Collector
        from nodeagent.proxy.worker import Worker
        from nodeagent.pulse import Pulses

        async def go_on():
            loop = asyncio.get_running_loop()
            ends = [pair() for _ in range(2)]
            Worker(loop, ends[0][0], Pulses().claim())
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            Collector(loop, ends[1][0])
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            await asyncio.sleep(0)
            print("goes on")

        asyncio.run(go_on())
        """
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done
