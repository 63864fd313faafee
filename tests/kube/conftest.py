"""A real API server for all tests of this folder; `make kube` builds it once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.cluster import ROOT, Cluster, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    made = subprocess.run(["make", "--silent", "kube"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"run make kube first: {made.stderr}"
    with running(Path(made.stdout.split()[-1])) as found:
        yield found
