"""For every test: nothing may be left on the machine.

What a run makes is told from what was there before by comparing both ends of it; processes are told
by an environment variable that they inherit. While another run of these tests is going on, things
cannot be attributed, and only processes are judged.

And whoever starts the tests leaves nothing to them: a shell's job in the background has SIGINT
ignored, and so had all that tests start and interrupt.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "NODEAGENT_TEST_RUN"
GRACE_SECONDS = 60.0

INHERITED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)

for _number in INHERITED:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, INHERITED)


def marked_processes() -> dict[int, str]:
    """Return the run that each process of any run belongs to, by pid."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
        except OSError:  # ended meanwhile
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(MARK.encode() + b"="):
                found[int(directory.name)] = variable.partition(b"=")[2].decode()
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"


def in_a_room(cgroup: str) -> bool:
    """Say whether *cgroup* is of a room (tests/room.sh) beside this run, which removes it itself."""
    return any(part.startswith("room-") for part in Path(cgroup).parts)


def traces() -> set[str]:
    """Return what tests could leave: network namespaces, links, cgroups, pins, mounts, labs."""
    found = {f"network namespace {path.name}" for path in Path("/run/netns").glob("*")}
    found |= {f"network link {path.name}" for path in Path("/sys/class/net").iterdir()}
    found |= {f"lab {path}" for path in Path("/run/nodeagent/lab").glob("*")}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            found |= {f"cgroup {directory}" for directory, _, _ in os.walk(target) if not in_a_room(directory)}
        elif kind == "bpf":
            # The first mount of bpffs may come with two iterators of the kernel's own
            # (CONFIG_BPF_PRELOAD).
            found |= {
                f"pin {path}" for path in Path(target).rglob("*") if path.name not in ("maps.debug", "progs.debug")
            }
        elif "nodeagent" in target:
            found.add(f"mount {target}")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_remains() -> Iterator[None]:
    """Fail the run if a process, network namespace, link, cgroup, pin, mount or lab of it is still
    there a moment after the last test.
    """
    run = os.environ[MARK] = uuid.uuid4().hex
    before = traces()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        marked = marked_processes()
        remains = [
            f"process {pid} ({command(pid)})" for pid, owner in marked.items() if owner == run and pid != os.getpid()
        ]
        if not any(owner != run for owner in marked.values()):
            remains += sorted(traces() - before)
        if not remains:
            return
        if time.monotonic() > deadline:
            pytest.fail("the tests left behind:\n  " + "\n  ".join(remains), pytrace=False)
        time.sleep(0.1)
