"""One plain proxy on the way: what a hop costs at least."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from nodeagent.compare import envoy, measure
from nodeagent.compare.load import CompareError, Workload
from nodeagent.compare.manifests import PLAIN
from nodeagent.compare.modes import Log, Mode, pod_group
from nodeagent.lab import Lab

HAPROXY_PORT: Final = 10081
_START_SECONDS = 60.0
_FOLDER: Final = Path("/run/hop")
"""Where a hop's files are in the client's pod."""
_HAPROXY = """
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend hop
  bind 127.0.0.1:{port}
  default_backend server
backend server
  server server {server}
global
  nbthread 1
"""


@dataclass(slots=True, eq=False)
class _Hop(Mode):
    """One proxy in the client's pod that the client asks instead of the server."""

    program: ClassVar[str]
    port: ClassVar[int]
    whole: ClassVar[bool] = False

    @property
    def _server(self) -> str:
        return Mode.address(self, "http")

    def address(self, workload: Workload) -> str:
        return f"127.0.0.1:{self.port}"

    def _outside(self, path: Path) -> Path:
        """Return where a file of the client's pod is from here."""
        return self.lab.root("client", PLAIN) / path.relative_to("/")

    def _write(self, name: str, text: str) -> Path:
        """Write a file of its configuration; return where it is in the pod."""
        path = _FOLDER / name
        self._outside(path).parent.mkdir(exist_ok=True)
        self._outside(path).write_text(text)
        return path

    def groups(self, workload: Workload | None = None) -> list[Path]:
        return []

    def _processes(self) -> list[int]:
        return measure.of_program(pod_group(self.lab, PLAIN, "client"), lambda name: name == self.program)

    def cpu_seconds(self) -> float:
        return measure.cpu_seconds(self._processes())

    def memory(self, workload: Workload | None = None) -> int:
        return measure.memory(self._processes())


@dataclass(slots=True, eq=False)
class HaproxyHop(_Hop):
    """One hop through HAProxy in the client's pod: one thread, pooled connections, nothing else."""

    name = "haproxy"
    program = "haproxy"
    port = HAPROXY_PORT
    does = ("one plain proxy hop in the client's pod, one thread",)
    does_not = ("capture, mTLS, policy, metrics, access log, the server's side",)

    def start(self) -> None:
        """Start HAProxy in the client's pod and wait until it listens. Raises CompareError."""
        config = self._write("haproxy.cfg", _HAPROXY.format(port=self.port, server=self._server))
        _start(self.lab, ["haproxy", "-db", "-f", str(config)], self.port)


@dataclass(slots=True, eq=False)
class EnvoyHop(_Hop):
    """One hop through Envoy in the client's pod: one worker thread, router only, access log."""

    name = "envoy-hop"
    program = "envoy"
    port = envoy.HOP_PORT
    does = ("one plain proxy hop in the client's pod, one thread", "access log")
    does_not = ("capture, mTLS, policy, the server's side",)

    def start(self) -> None:
        """Start Envoy in the client's pod and wait until it listens. Raises CompareError."""
        log = _FOLDER / "envoy-hop-access.log"
        self.logs.append(Log(self._outside(log)))
        path = self._write("envoy-hop.json", json.dumps(envoy.hop(self._server, log)))
        argv = [
            str(envoy.binary()),
            "-c",
            str(path),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ]
        _start(self.lab, argv, self.port)


def _start(lab: Lab, argv: list[str], port: int) -> None:
    """Start *argv* in the client's pod and wait until something listens on *port*. It dies with the pod."""
    log = lab.state / f"{Path(argv[0]).name}.log"
    with log.open("ab") as output:
        process = lab.popen("client", argv, PLAIN, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + _START_SECONDS
    while not _listening(lab.netns("client", PLAIN), port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CompareError(
                f"{argv[0]} in {PLAIN}/client does not come up: {log.read_text(errors='replace').strip()[-500:]}"
            )
        time.sleep(0.05)


def _listening(netns: Path, port: int) -> bool:
    done = subprocess.run(
        ["nsenter", f"--net={netns}", "--", "ss", "-Hltn", f"sport = :{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return bool(done.stdout.strip())
