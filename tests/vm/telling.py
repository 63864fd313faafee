"""What a long run prints: a line when something happens, and one at least every QUIET_SECONDS."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

QUIET_SECONDS = 15.0
BEGUN = time.monotonic()
_lock = threading.Lock()
_last = BEGUN


def tell(words: str) -> None:
    """Print *words* with the time since the run began."""
    global _last
    with _lock:
        _last = time.monotonic()
        print(f"{_last - BEGUN:6.0f} s  {words}", flush=True)


@contextmanager
def going_on(what: str, state: list[str] | None = None) -> Iterator[None]:
    """Say that *what* still goes on whenever nothing was said for a while, with the last of *state*."""
    ended = threading.Event()
    begun = time.monotonic()

    def remind() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - _last >= QUIET_SECONDS:
                last = f": {state[-1]}" if state else ""
                tell(f"… {what}, for {time.monotonic() - begun:.0f} s{last}")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Failed(Exception):
    """Something went wrong in a way that a person can act on; its text says what, and what to do next."""


def run(what: str, argv: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """Run *argv*, telling its lines as they come and keeping them in *log*; return them.

    Raises Failed when it fails, or takes longer than *seconds*.
    """
    lines: list[str] = []
    with log.open("a") as file, going_on(what, lines):
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line.strip())
                if line.strip() and "Progress: " not in line:
                    tell(f"  {line.strip()[:160]}")
            code = process.wait()
        finally:
            killer.cancel()
            process.kill()
    if code:
        why = f"took longer than {seconds:.0f} s" if code == -9 else f"failed with status {code}"
        raise Failed(f"{what} {why}; all that it said is in {log}")
    return "\n".join(lines)
