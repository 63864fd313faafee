"""Envoy's secret discovery: a real sidecar shows its pod's certificate, and the next one as soon as there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import QUICK, account, cluster
from tests.waiting import eventually

VARIANTS = {"whole": False, "delta": True}
TEXT = account("whole", "delta") + "".join(sidecar.pod(name, "node1", account=name) for name in VARIANTS)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-sds", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 20}})) as lab:
        yield lab


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sidecar_shows_its_pods_certificate_and_each_new_one(lab: Lab, tmp_path: Path, name: str) -> None:
    log = tmp_path / "envoy.log"
    process = sidecar.start(lab, name, log, admits=[name], delta=VARIANTS[name])
    try:
        identity, first = eventually(
            lambda: found if (found := sidecar.certificate(lab, name))[0] else None, "it has a certificate"
        )
        assert identity == f"{PREFIX}/{name}"
        eventually(lambda: sidecar.certificate(lab, name)[1] not in ("", first), "it has the next one", seconds=60)
        assert sidecar.certificate(lab, name)[0] == identity
        rejected = [
            line
            for line in sidecar.admin(lab, name, "/stats?filter=update_rejected").decode().splitlines()
            if not line.endswith(": 0")
        ]
        assert rejected == []
        assert "PRIVATE KEY" not in log.read_text() + lab.agent("node1").log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=60)
