"""Prometheus on a real cluster, told what the Prometheus Operator would tell it. Debian's is built without discovery
by Kubernetes' API, so it has a file of what that would find: the API's pods, as it names them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.layout import CONTROL
from nodeagent.lab.processes import tail
from tests.kube.cluster import process
from tests.kube.mesh import SECONDS, get
from tests.kube.workloads import Document
from tests.prometheus_operator import discovered, scrapes
from tests.waiting import eventually

ADDRESS = "127.0.0.1:9090"
"""Of the control plane's network, from which nodes and pods are reached."""


class Prometheus:
    """What it is asked, by its API."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def get(self, path: str) -> Any:
        """Return the data of an answer; an AssertionError while there is none."""
        command = self._kube.command(CONTROL, ["curl", "-sg", "-m", "10", f"http://{ADDRESS}/api/v1/{path}"])
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        assert said.startswith('{"status":"success"'), said
        return json.loads(said)["data"]

    def targets(self) -> dict[tuple[str, str], str]:
        """Return the health of what is scraped, by the label ``job`` and where it is asked."""
        found = self.get("targets?state=active")["activeTargets"]
        return {(each["labels"]["job"], each["scrapeUrl"]): each["health"] for each in found}

    def rules(self) -> list[Document]:
        """Return the rules as it has read them, with what came of each."""
        return list(chain.from_iterable(group["rules"] for group in self.get("rules")["groups"]))


@contextmanager
def prometheus(kube: Kube, folder: Path, monitors: Sequence[Document], rules: Document) -> Iterator[Prometheus]:
    """Run one in *folder* that scrapes by *monitors* (PodMonitors of one namespace), and has the alerts of *rules* (a
    PrometheusRule).
    """
    pods = get(kube, "pods", "-n", rules["metadata"]["namespace"])["items"]
    found = chain.from_iterable(map(discovered, pods))
    (folder / "found.json").write_text(
        json.dumps([{"targets": [each["__address__"]], "labels": each} for each in found])
    )
    files = [{"files": [str(folder / "found.json")]}]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{**each, "file_sd_configs": files} for each in chain.from_iterable(map(scrapes, monitors))],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={ADDRESS}",
    ]
    log = folder / "prometheus.log"
    with process(log, *kube.command(CONTROL, command)) as child:
        asked = Prometheus(kube)
        eventually(lambda: ended(child, log) or asked.get("status/runtimeinfo"), "Prometheus answers", SECONDS)
        yield asked


def ended(child: subprocess.Popen[bytes], log: Path) -> bool:
    """Say no; what has ended is told with the end of its *log*."""
    if child.poll() is not None:
        pytest.fail(tail(log, 10))
    return False
