"""What the end-to-end tests of gRPC share: servers and clients of real libraries in pods."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodeagent.lab import Lab
from tests.netns.world import APPS, bracketed, cluster_ip, pod

PORT = 50051
GRPCIO = APPS / "calls.py"
SERVERS: Mapping[str, str] = {
    "go": json.dumps(["grpcload", "serve", f"[::]:{PORT}"]),
    "sync": json.dumps([sys.executable, str(GRPCIO), "serve", "sync", str(PORT)]),
    "aio": json.dumps([sys.executable, str(GRPCIO), "serve", "aio", str(PORT)]),
}
"""Programs that serve the same methods: grpc-go, and grpcio's two kinds."""
_LEAVING = ", lifecycle: {preStop: {exec: {command: [sleep, '2']}}}"
"""As everybody has it whose calls shall not fail: other nodes hear that the pod ends before it does."""
_PROBE = f"readinessProbe: {{grpc: {{port: {PORT}}}, periodSeconds: 1}}"


def calls_server(name: str, node: str, *, kind: str = "go", leaves: bool = False, **options: str) -> str:
    """Return the YAML of a pod that serves calls with the library *kind*, and of its Service; one that
    *leaves* takes its time to end.
    """
    container = f"env: [{{name: GRPCLOAD_NAME, value: {name}}}], {_PROBE}{_LEAVING if leaves else ''}"
    text = pod(name, node, command=SERVERS[kind], container=container, **options)
    if leaves:
        text = text.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20")
    return text + calls_service(name, f"app: {name}")


def calls_service(name: str, selector: str, *, port_name: str = "grpc") -> str:
    spec = f"ipFamilyPolicy: PreferDualStack, selector: {{{selector}}}, ports: [{{name: {port_name}, port: {PORT}}}]"
    return f"\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def target(lab: Lab, service: str, version: int = 4) -> str:
    """Return where *service* is asked."""
    return f"{bracketed(cluster_ip(lab, service, version))}:{PORT}"


def argv(where: str, method: str, **flags: object) -> list[str]:
    """Return grpcload's arguments for calls of *method* at *where*."""
    return ["grpcload", "call", f"-target={where}", f"-method={method}", *[f"-{k}={v}" for k, v in flags.items()]]


def rpc(lab: Lab, source: str, where: str, method: str = "Echo", **flags: object) -> Any:
    """Make calls from the pod *source* with grpc-go; return what became of them."""
    done = lab.exec(source, argv(where, method, **flags), timeout=90)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def grpcio(lab: Lab, source: str, where: str, kind: str, *cases: str) -> Any:
    """Make the calls *cases* from the pod *source* with grpcio, ``sync`` or ``aio``."""
    done = lab.exec(source, [sys.executable, str(GRPCIO), "call", kind, where, *cases], timeout=90)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


class Running:
    """grpcload's calls under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Any:
        """End its standard input, with which calls without a number end; return what became of them."""
        out, wrong = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, (out, wrong)
        return json.loads(out)


@contextmanager
def calling(lab: Lab, source: str, where: str, method: str = "Echo", **flags: object) -> Iterator[Running]:
    """Make calls from the pod *source* meanwhile."""
    pipe = subprocess.PIPE
    with lab.popen(source, argv(where, method, **flags), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()


class Documents:
    """A watched folder of agents, for policies that come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, text: str) -> None:
        staged = self._folder / f".{name}"
        staged.write_text(text)
        staged.rename(self._folder / f"{name}.yaml")

    def drop(self, name: str) -> None:
        (self._folder / f"{name}.yaml").unlink(missing_ok=True)
