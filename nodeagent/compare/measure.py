"""Memory and CPU time of processes, as the kernel counts them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nodeagent.lab import cgroup

_TICKS = os.sysconf("SC_CLK_TCK")


def memory(pids: Iterable[int]) -> int:
    """Return the memory of *pids* in bytes (PSS: pages that several share are divided among them);
    a process that has ended counts nothing.
    """
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        kilobytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
        total += kilobytes["Pss"] << 10
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that *pids*, not their children, have used in user and kernel mode since they started."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def group_cpu_seconds(group: Path) -> float:
    """Return the CPU time that the processes of the cgroup *group* have used since it was made;
    finer than :func:`cpu_seconds`.
    """
    return int((group / "cpu.stat").read_text().split()[1]) / 1e6


def busy_cores(seconds: float) -> float:
    """Watch the machine for *seconds* and return how many of its cores were at work."""

    def worked() -> int:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4]  # all but idle and iowait

    before = worked()
    time.sleep(seconds)
    return (worked() - before) / _TICKS / seconds


def of_program(group: Path, matches: Callable[[str], bool]) -> list[int]:
    """Return the pids in the cgroup *group* whose program's file name *matches*."""
    found = []
    for pid in cgroup.processes(group):
        try:
            if matches(Path(os.readlink(f"/proc/{pid}/exe")).name):
                found.append(pid)
        except OSError:  # ended, or not ours
            continue
    return found
