"""What the tests of the pods' own sockets share: pods that ask for one, and the application that uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodeagent.lab import Lab
from tests.netns.world import APPS, Client, pod

PROGRAM = [str(Path(sys.prefix) / "spiffe" / "bin" / "python"), str(APPS / "workload.py")]
"""In an environment of its own, which `make setup` makes: the package wants another cryptography
than the agent's, Debian's.
"""
MOUNTED = "/run/spiffe"
SOCKET = f"{MOUNTED}/socket"
MOUNT = f"volumeMounts: [{{name: api, mountPath: {MOUNTED}}}]"
PREFIX = "spiffe://cluster.local/ns/default/sa"


def with_volume(text: str, driver: str = "csi.nodeagent.io") -> str:
    """Return the YAML of one pod, with the volume that MOUNT mounts."""
    head, middle, tail = text.partition("\n  containers:\n")
    return f"{head}\n  volumes: [{{name: api, csi: {{driver: {driver}}}}}]{middle}{tail}"


def asking(name: str, node: str, *, driver: str = "csi.nodeagent.io", **options: str) -> str:
    """Return the YAML of a pod that has the volume and does nothing."""
    return with_volume(pod(name, node, command="[sleep, infinity]", container=MOUNT, **options), driver)


def workload(lab: Lab, source: str, command: str, *arguments: str, path: str = SOCKET, input: str = "") -> Any:
    """Run workload.py in the pod *source*; return what it says last."""
    done = run(lab, source, command, *arguments, path=path, input=input)
    assert done.returncode == 0, done
    return json.loads(done.stdout.splitlines()[-1])


def run(
    lab: Lab, source: str, command: str, *arguments: str, path: str = SOCKET, input: str = ""
) -> subprocess.CompletedProcess[str]:
    return lab.exec(source, [*PROGRAM, command, path, *arguments], input=input, timeout=90)


@contextmanager
def watching(lab: Lab, source: str, count: int) -> Iterator[Client]:
    """Hear of *count* X.509-SVIDs in the pod *source*, as they come; enter at the first."""
    with lab.popen(source, [*PROGRAM, "watch", SOCKET, str(count)], stdout=subprocess.PIPE, text=True) as process:
        running = Client(process)
        try:
            running.first = running.hear()
            yield running
        finally:
            process.kill()


def in_host(lab: Lab, name: str) -> str:
    """Return the path of the socket of the pod *name* on its node."""
    found = lab.pod(name)
    return str(lab.layout.pod_sockets(found["spec"]["nodeName"], found["metadata"]["uid"]) / "socket")
