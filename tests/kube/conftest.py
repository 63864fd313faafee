"""Real API servers and clusters for the tests of this folder; `make kube` builds what they run, once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.lab.kube import Kube
from tests.kube.cluster import ROOT, Cluster, running
from tests.kube.mesh import install


@pytest.fixture(scope="session")
def binary() -> Path:
    """Kubernetes, as one program."""
    printed = subprocess.run(["make", "--silent", "kube-path"], cwd=ROOT, capture_output=True, text=True, check=True)
    built = Path(printed.stdout.strip())
    assert built.exists(), f"{built} is not built: run `make kube` first"
    return built


@pytest.fixture(scope="session")
def commands(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH, with kubectl in it."""
    folder = tmp_path_factory.mktemp("commands")
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {binary} kubectl "$@"\n')
    kubectl.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def cluster(binary: Path) -> Iterator[Cluster]:
    """An API server, without nodes and controllers."""
    with running(binary) as found:
        yield found


@pytest.fixture(scope="session")
def kube(binary: Path) -> Iterator[Kube]:
    """A cluster of two nodes, for the files of a room."""
    with Kube.up(name="test", binary=binary) as found:
        yield found


@pytest.fixture(scope="session")
def mesh(kube: Kube) -> Kube:
    """The cluster with an agent on every node, as `make image` and daemonset/ have it."""
    install(kube)
    return kube
