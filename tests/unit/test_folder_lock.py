"""One daemon for a folder: who holds the lock, who is told, and when it is free again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.errors import ControlError
from nodeagent.folder_lock import held, is_free, owner

ROOT = Path(__file__).parents[2]
HOLDER = """
    import sys, time
    from pathlib import Path
    from nodeagent.folder_lock import held
    with held(Path(sys.argv[1]), "runtimeDirectory"):
        print("held", flush=True)
        sys.stdin.read()
"""
SUPERVISOR = """
    import os, signal, sys
    from pathlib import Path
    from nodeagent import supervisor
    from nodeagent.forking import CONTROL, Role
    from nodeagent.folder_lock import held

    def control(end, pulse):
        print(os.getpid(), flush=True)
        signal.pause()

    with held(Path(sys.argv[1]), "runtimeDirectory") as lock:
        supervisor.main({CONTROL: Role(control)}, supervisor.Estate({"runtimeDirectory": lock}))
"""


@contextmanager
def process(script: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run *script* until its first line, and yield that with it."""
    argv = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline()
        finally:
            running.kill()


def test_the_second_is_told_who_the_first_is_and_what_to_do(tmp_path: Path) -> None:
    with process(HOLDER, tmp_path) as (first, _):
        assert owner(tmp_path) == first.pid
        assert not is_free(tmp_path)
        said = (
            rf"^runtimeDirectory {tmp_path} is in use by the daemon with pid {first.pid}: end that one first "
            rf"\(kill {first.pid}\)"
        )
        with pytest.raises(ControlError, match=said), held(tmp_path, "runtimeDirectory"):
            pass
        first.kill()
        first.wait()
        with held(tmp_path, "runtimeDirectory"):
            assert owner(tmp_path) == os.getpid()
    assert owner(tmp_path) is None
    assert is_free(tmp_path)
    assert is_free(tmp_path / "not there")


def test_a_folder_that_was_missing_goes_again_unless_it_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with held(folder, "runtimeDirectory"):
        assert folder.is_dir()
    assert not folder.exists()
    folder.mkdir()
    with held(folder, "runtimeDirectory"):
        pass
    assert folder.is_dir()
    with held(tmp_path / "b", "runtimeDirectory"):
        (tmp_path / "b" / "admin.sock").touch()
    assert (tmp_path / "b").is_dir()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = f"redirect.pinDirectory {tmp_path}/file/run: cannot be made: Not a directory"
    with pytest.raises(ControlError, match=said), held(tmp_path / "file" / "run", "redirect.pinDirectory"):
        pass


def test_a_child_does_not_keep_it(tmp_path: Path) -> None:
    """Control and the workers die with the supervisor; a start right after it must not meet what
    they would hold until then.
    """
    with process(SUPERVISOR, tmp_path) as (daemon, said):
        assert owner(tmp_path) == daemon.pid != int(said)
        assert str(tmp_path) in opened(daemon.pid)
        assert str(tmp_path) not in opened(int(said))
        daemon.kill()
        daemon.wait()
        with held(tmp_path, "runtimeDirectory"):
            pass


def opened(pid: int) -> set[str]:
    return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
