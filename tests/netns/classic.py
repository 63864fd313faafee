"""Our own classic sidecar in a lab pod: ``nodeagent sidecar-init``, then ``nodeagent sidecar`` as
user 1337, with the node agent's certificates.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent.istio import USER
from nodeagent.lab import Lab, cgroup, http
from nodeagent.lab.layout import Layout
from nodeagent.lab.processes import inside
from nodeagent.places.annotation import CGROUP
from tests.netns.identity import MOUNT, SOCKET, with_volume
from tests.netns.world import AccessLog, Samples, server
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "/cluster"
"""The lab's state as a volume of the pod: what a container sees of its node's /run is an overlay,
in which inotify is silent.
"""
PROBE = "readinessProbe: {exec: {command: [sh, -c, 'grep -q :1F90 /proc/net/tcp6']}, periodSeconds: 1}"
NODEAGENT = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "nodeagent"]


def pod(lab: str, name: str, node: str, *, account: str, labels: str = "") -> str:
    """Return the YAML of a pod of *lab* with the test server that brings a sidecar, and of its
    Service; :func:`sidecar` starts the sidecar.
    """
    text = server(name, node, account=account, labels=labels, annotations="sidecar.istio.io/status: '{}'")
    first, _, service = text.partition("\n\n---")
    first = with_volume(
        first.replace(PROBE, f"{PROBE}, {MOUNT[:-1]}, {{name: source, mountPath: {SOURCE}, readOnly: true}}]")
    )
    source = f"volumes: [{{name: source, hostPath: {{path: {Layout(lab).state}}}}}, "
    return first.replace("volumes: [", source) + f"\n---{service}"


def init(lab: Lab, name: str, *arguments: str) -> None:
    subprocess.run(inside(lab.netns(name), [*NODEAGENT, "sidecar-init", *arguments]), check=True, capture_output=True)


def environment(lab: Lab, name: str) -> dict[str, str]:
    """Return what the downward API says in the pod *name*."""
    found = lab.pod(name)
    metadata = found["metadata"]
    return {
        "POD_NAME": name,
        "POD_NAMESPACE": metadata["namespace"],
        "POD_UID": metadata["uid"],
        "POD_IPS": ",".join(each["ip"] for each in found["status"]["podIPs"]),
        "NODE_NAME": found["spec"]["nodeName"],
    }


def command(variables: Mapping[str, str], *arguments: str, socket: str = SOCKET) -> list[str]:
    argv = [*NODEAGENT, "sidecar", "--source", SOURCE, "--sds-socket", socket, *arguments]
    return ["env", *(f"{key}={value}" for key, value in variables.items()), *unprivileged(argv)]


def unprivileged(argv: Sequence[str]) -> list[str]:
    return ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--", *argv]


@dataclass
class Sidecar:
    lab: Lab
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    access: Path

    def get(self, port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
        return http.get(self.lab.netns(self.name), port, path, host=host, seconds=60)

    def samples(self) -> Samples:
        status, text = self.get(15020, "/stats/prometheus")
        assert status == 200
        return Samples(text)

    def ready(self) -> bool:
        try:
            return self.get(15021, "/healthz/ready")[0] == 200
        except OSError:
            return False

    def ready_or_ended(self) -> bool:
        """An AssertionError has the log as it is by then."""
        told = self.log.read_text()[-2000:]
        assert self.process.poll() is not None or self.ready(), f"the sidecar of {self.name} is not ready; log: {told}"
        return True

    def certificate(self) -> Any:
        """Return the one that the sidecar shows; an empty one where it has none (any more)."""
        held = json.loads(self.get(15000, "/certs")[1])
        return held[0] if held else {"serial": None}

    def access_log(self) -> AccessLog:
        return AccessLog(self.access, self.access.stat().st_size)

    def pid(self) -> int:
        """Return the process in the pod: ``process`` is who entered its namespaces for it."""
        group = Path(self.lab.pod(self.name)["metadata"]["annotations"][CGROUP])
        found = [pid for pid in cgroup.processes(group / "c") if _runs(pid, self.name)]
        assert len(found) == 1, found
        return found[0]

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        os.kill(self.pid(), signal.SIGTERM)
        return self.process.wait(60)


def _runs(pid: int, name: str) -> bool:
    try:
        return b"\0sidecar\0" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.stat(f"/proc/{pid}").st_uid == USER
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def sidecar(
    lab: Lab,
    name: str,
    logs: Path,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    rules: Sequence[str] = (),
) -> Iterator[Sidecar]:
    """Run the sidecar of the pod *name*, with its rules; enter when it is ready."""
    log, access = logs / f"{name}.log", logs / f"{name}.access"
    init(lab, name, *rules)
    with log.open("ab") as errors, access.open("ab") as lines:
        argv = command(environment(lab, name) | dict(variables or {}), "--drain-seconds", "2", *arguments)
        process = lab.popen(name, argv, stdin=subprocess.DEVNULL, stdout=lines, stderr=errors)
    running = Sidecar(lab, name, process, log, access)
    try:
        eventually(running.ready_or_ended)
        assert process.poll() is None, log.read_text()[-2000:]
        yield running
    finally:
        if process.poll() is None:
            os.kill(running.pid(), signal.SIGKILL)
            process.wait(60)
        init(lab, name, "--clean")
