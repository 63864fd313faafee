"""Agents on the nodes of a real cluster, as processes of the nodes: no image is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodeagent.lab.agent import merge
from nodeagent.lab.kube import Kube
from nodeagent.lab.processes import tail
from tests.kube.cluster import ROOT
from tests.waiting import eventually

START = 'echo $$ > /run/agent.pid; exec "$@"'
STOP = (
    "pid=$(cat /run/agent.pid 2> /dev/null) || exit 0; kill $pid 2> /dev/null; "
    "while kill -0 $pid 2> /dev/null; do sleep 0.1; done"  # it ends its connections first
)
KINDS = (ROOT / "daemonset" / "base" / "crds", ROOT / "daemonset" / "overlays" / "crds")
NODEAGENT = (sys.executable, "-m", "nodeagent")


class Agents:
    """One a node, with the settings *more* besides."""

    def __init__(self, kube: Kube, more: Mapping[str, Any]) -> None:
        self._kube = kube
        self._folder = kube.layout.folder / "agents"
        self._more = more
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start them all; return when they are ready."""
        self._folder.mkdir(exist_ok=True)
        for folder in KINDS:
            self._kube.kubectl("apply", "-k", str(folder))
        for own in self._kube.nodes:
            path = self._folder / f"{own.name}.yaml"
            path.write_text(json.dumps(merge(self._settings(own.name), self._more)))
            argv = ["sh", "-c", START, "sh", *NODEAGENT, "run", "-c", str(path)]
            with self.log(own.name).open("ab") as log:
                command = self._kube.command(own.name, argv)
                self._processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
        for own in self._kube.nodes:
            self._wait_for(own.name)

    def _settings(self, node: str) -> dict[str, Any]:
        return {
            "node": node,
            "kubernetes": {"kubeconfig": str(self._kube.layout.admin)},
            "identity": {"caDirectory": str(self._folder / "ca")},
            "telemetry": {"accessLog": {"path": str(self._folder / f"{node}.access"), "format": "json"}},
        }

    def _wait_for(self, node: str) -> None:
        try:
            eventually(lambda: self.run(node, "ready").returncode == 0, f"the agent of {node} is ready", 90)
        except AssertionError as error:
            said = self.run(node, "ready")
            raise AssertionError(f"{error}: {said.stdout}{said.stderr}\n{tail(self.log(node), 30)}") from None

    def run(self, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of nodeagent on *node*."""
        command = self._kube.command(node, [*NODEAGENT, *arguments])
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def pods(self, node: str) -> dict[str, Any]:
        """Return the rows of `get pods` on *node*, by namespace/name."""
        rows = json.loads(self.run(node, "get", "pods", "-o", "json").stdout)
        return {f"{row['namespace']}/{row['pod']}": row for row in rows}

    def log(self, node: str) -> Path:
        return self._folder / f"{node}.log"

    def requests(self, node: str) -> list[Any]:
        """Return the records of *node*'s access log."""
        path = self._folder / f"{node}.access"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stop(self) -> None:
        """Stop them, and remove what they leave in the kernel, and the kinds that they read."""
        for own in self._kube.nodes:
            subprocess.run(self._kube.command(own.name, ["sh", "-c", STOP]), check=False)
            self.run(own.name, "uninstall")
        for process in self._processes:
            process.kill()
            process.wait()
        for folder in KINDS:
            self._kube.kubectl("delete", "-k", str(folder), "--ignore-not-found")


@contextmanager
def agents(kube: Kube, more: Mapping[str, Any] | None = None) -> Iterator[Agents]:
    """Have agents on all nodes meanwhile."""
    found = Agents(kube, more or {})
    try:
        found.start()
        yield found
    finally:
        found.stop()
