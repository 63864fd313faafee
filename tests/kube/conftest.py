"""A real API server for all tests of this folder; `make kube` builds it once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.cluster import ROOT, Cluster, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    printed = subprocess.run(["make", "--silent", "kube-path"], cwd=ROOT, capture_output=True, text=True, check=True)
    kube = Path(printed.stdout.strip())
    assert kube.exists(), f"{kube} is not built: run `make kube` first"
    with running(kube) as found:
        yield found
