"""The Envoys' configurations, judged by Envoy itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nodeagent.compare import envoy, modes


def validate(config: dict[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    return subprocess.run([envoy.binary(), "--mode", "validate", "-c", path], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("side", ["hop", "client", "server"])
def test_envoy_takes_it(side: str, tmp_path: Path) -> None:
    modes.issue(tmp_path)
    log = tmp_path / "access.log"
    configs = {"hop": envoy.hop("10.0.0.1:8080", log), "client": envoy.client_side(tmp_path, log), "server": envoy.server_side(tmp_path, log)}
    done = validate(configs[side], tmp_path)
    assert done.returncode == 0, done.stderr


def test_envoy_refuses_a_certificate_of_another_key(tmp_path: Path) -> None:
    """So that the test above shows something."""
    modes.issue(tmp_path)
    (tmp_path / "client.key").write_bytes((tmp_path / "server.key").read_bytes())
    done = validate(envoy.client_side(tmp_path, tmp_path / "access.log"), tmp_path)
    assert done.returncode != 0
    assert "private key" in done.stderr.lower() or "KEY_VALUES_MISMATCH" in done.stderr


def test_capture_leaves_envoys_own_connections_alone() -> None:
    for rule in envoy.capture_rules("client"):
        assert rule[rule.index("!") + 1 :][:2] == ["--gid-owner", str(envoy.GROUP)]
    assert {rule[-1] for rule in envoy.capture_rules("server")} == {str(port) for port in envoy.INBOUND.values()}
