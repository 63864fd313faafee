"""`make rehearse`: what .ci/run finds, and what is left of it, shown with a small repository in the project's place."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "rehearse.sh"
FOUND = """#!/bin/sh
mkdir -p "$XDG_CACHE_HOME" && touch "$XDG_CACHE_HOME/ours" /tmp/ours
chmod -R a-w "$XDG_CACHE_HOME"
sleep 1000 &
echo "home: $(ls -A "$HOME")"
echo "tmp: $(ls -A /tmp)"
echo "bpffs: $(grep -c ' bpf ' /proc/mounts)"
echo "files: $(echo *)"
echo "at: $(pwd)"
"""
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.org")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with this project's script, and one file that is not committed."""
    made = tmp_path / "repository"
    (made / "tests").mkdir(parents=True)
    (made / ".ci").mkdir()
    shutil.copy(SCRIPT, made / "tests")
    return made


def rehearsed(repository: Path, run: str) -> subprocess.CompletedProcess[str]:
    """Commit *run* as .ci/run, and rehearse it."""
    (repository / ".ci" / "run").write_text(run)
    (repository / ".ci" / "run").chmod(0o755)
    for command in (["init", "--quiet"], ["add", "."], [*IDENTITY, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (repository / "forgotten").touch()
    return subprocess.run(
        [repository / "tests" / "rehearse.sh"], capture_output=True, text=True, timeout=60, check=False
    )


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_it_runs_in_a_clone_without_what_a_machine_has_gathered(repository: Path) -> None:
    done = rehearsed(repository, FOUND)
    assert done.returncode == 0, done
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said["home"] == ".cache"
    assert said["tmp"] == "ours"
    assert said["bpffs"] == "0"
    assert "forgotten" not in done.stdout
    assert "what is not committed is not rehearsed" in done.stderr
    assert not Path(said["at"]).exists()
    assert not Path("/tmp/ours").exists()
    assert "sleep 1000" not in processes()


def test_what_fails_is_told_and_leaves_nothing_either(repository: Path) -> None:
    done = rehearsed(repository, FOUND + "exit 7\n")
    assert done.returncode == 7
    (at,) = (line.removeprefix("at: ") for line in done.stdout.splitlines() if line.startswith("at: "))
    assert not Path(at).parent.exists()
    assert "sleep 1000" not in processes()
