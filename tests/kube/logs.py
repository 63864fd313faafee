"""What reads the logs of a real cluster's pods: the component `logs` on its agents, and Elasticsearch's
``_bulk`` beside the API server, which keeps what it is given.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nodeagent.lab import linux
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.layout import CONTROL, WIRE
from tests.fakes.bulk import Bulk
from tests.kube.cluster import ROOT
from tests.kube.mesh import rolled_out
from tests.kube.workloads import Document

PORT = 9200
DAEMONSET = ROOT / "daemonset"
RIGHTS = "/spec/template/spec/containers/0/securityContext/capabilities/add"


@dataclass
class Records:
    """What arrived: for each id all that was ever sent by it."""

    contents: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, identifier: str, document: Any) -> None:
        """Keep what was sent, before it is taken; a second time, too."""
        self.contents[identifier].add(json.dumps(document, sort_keys=True))

    def of(self, pod: str) -> list[Document]:
        """Return one record for each id of the pod *pod* (namespace/name), in the order of their arrival."""
        found = [json.loads(next(iter(each))) for each in list(self.contents.values())]
        return [each for each in found if whose(each) == pod]

    def texts(self, pod: str) -> list[str]:
        """Return the texts of :meth:`of`."""
        return [each["log"] for each in self.of(pod)]

    def torn(self) -> list[set[str]]:
        """Return what was sent by one id and is not the same."""
        return [each for each in list(self.contents.values()) if len(each) > 1]


def whose(record: Document) -> str:
    """Return the pod (namespace/name) that a record is of; of the node itself nothing."""
    kubernetes = record.get("kubernetes", {})
    return f"{kubernetes.get('namespace_name', '')}/{kubernetes.get('pod_name', '')}"


@contextmanager
def search(kube: Kube) -> Iterator[Records]:
    """Have ``_bulk`` beside the API server, where nodes reach it."""
    records = Records()
    with linux.network_namespace(kube.layout.netns(CONTROL)):
        listener = socket.create_server((str(WIRE[0][1]), PORT), backlog=100)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(Bulk(item=records.note).start(listener=listener), loop).result(20)
    try:
        yield records
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def settings() -> Document:
    """Return agent.yaml as daemonset/ has it, and where the logs go."""
    given: Document = yaml.safe_load((DAEMONSET / "base" / "agent.yaml").read_text())
    sink = {"name": "search", "elasticsearch": {"urls": [f"http://{WIRE[0][1]}:{PORT}"], "index": "logs"}}
    return {**given, "logs": {"sinks": [sink]}}


def read_logs(kube: Kube, folder: Path, without: Sequence[str] = ()) -> None:
    """Let the agents read logs, but for the capabilities *without*; return when every agent is another one.
    The kustomization is made in *folder*.
    """
    component = yaml.safe_load((DAEMONSET / "components" / "logs" / "kustomization.yaml").read_text())
    added = [each["value"] for each in yaml.safe_load(component["patches"][0]["patch"])]
    base = yaml.safe_load((DAEMONSET / "base" / "daemonset.yaml").read_text())
    [agent] = base["spec"]["template"]["spec"]["containers"]
    rights = [*agent["securityContext"]["capabilities"]["add"], *added]
    target = {"kind": "DaemonSet", "name": "nodeagent"}
    left = [each for each in rights if each not in without]
    patch = [{"op": "test", "path": RIGHTS, "value": rights}, {"op": "replace", "path": RIGHTS, "value": left}]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_from(folder, "overlays/minimal")],
        "components": [_from(folder, "components/logs")],
        "configMapGenerator": [{"name": "nodeagent", "behavior": "replace", "files": ["agent.yaml"]}],
        "patches": [{"target": target, "patch": yaml.safe_dump(patch)}],
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings()))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kube.kubectl("apply", "-k", str(folder))
    rolled_out(kube)


def _from(folder: Path, part: str) -> str:
    """Return the way from *folder* to a part of daemonset/: kustomize takes no absolute paths."""
    return os.path.relpath(DAEMONSET / part, folder)
