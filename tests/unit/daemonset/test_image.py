"""What the image's builder refuses to make an image of."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nodeagent.redirect import precompiled

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "daemonset" / "image" / "build.py"


@pytest.mark.parametrize(
    ("sources", "what"),
    [
        ("", "has no BPF programs (nodeagent/bpf/programs.json)"),
        ("of another text", "programs.json is not of the C sources beside it"),
    ],
)
def test_an_image_that_could_load_no_program_is_not_made(tmp_path: Path, sources: str, what: str) -> None:
    wheel = tmp_path / "nodeagent-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(ROOT / "bpf" / "connect.c", "nodeagent/bpf/connect.c")
        if sources:
            archive.writestr(f"nodeagent/bpf/{precompiled.FILE}", json.dumps({"sources": sources}))
    argv = [sys.executable, str(BUILD), str(wheel), str(tmp_path / "image.tar"), "nodeagent:1", str(tmp_path / "cache")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"no image: {wheel}") and what in done.stderr and "make image" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
