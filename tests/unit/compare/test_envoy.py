"""The configuration of the plain hop, judged by Envoy itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nodeagent.compare import envoy
from nodeagent.compare.load import CompareError


def test_envoy_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(envoy.hop("10.0.0.1:8080", tmp_path / "access.log")))
    done = subprocess.run(
        [envoy.binary(), "--mode", "validate", "-c", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_envoy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompareError, match=r"nodeagent\[compare\]"):
        envoy.binary()
