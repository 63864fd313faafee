"""Which capabilities this process has, and what the agent uses each for (capabilities(7)).

Tried one by one on a running daemon: tests/netns/test_agent_rights.py. CAP_BPF, CAP_PERFMON and
CAP_NET_ADMIN would do for the programs, but entering pods' network namespaces takes CAP_SYS_ADMIN
(setns(2)), which has all of that in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Right:
    """A capability: its number, whether the agent can do nothing without it, what for, and what is lost."""

    name: str
    number: int
    needed: bool
    use: str
    lost: str


NO_MOUNTS: Final = "no Workload API by annotation; pods with a volume of csi.nodeagent.io do not start"

RIGHTS: Final = (
    Right(
        "SYS_ADMIN",
        21,
        True,
        "BPF; sockets inside pods (setns)",
        "everything: no pod can be captured",
    ),
    Right("SETUID", 7, True, "proxy workers are no root", "no proxy: a worker that stays root carries nothing"),
    Right("SETGID", 6, True, "proxy workers are no root", "no proxy: a worker that stays root carries nothing"),
    Right(
        "NET_ADMIN",
        12,
        False,
        "closing connections (SOCK_DESTROY)",
        "connections on the kernel path that policy refuses now go on until they end",
    ),
    Right("KILL", 5, False, "signals to workers, which are another user's", "a worker that hangs is not replaced"),
    Right(
        "SYS_PTRACE",
        19,
        False,
        "the Workload API: mounts inside pods and of volumes (mount namespaces of other processes)",
        NO_MOUNTS,
    ),
    Right(
        "SYS_CHROOT",
        18,
        False,
        "the Workload API: mounts inside pods and of volumes (setns of a mount namespace)",
        NO_MOUNTS,
    ),
    Right(
        "SETPCAP",
        8,
        False,
        "workers give up what they could ever have (the bounding set)",
        "nothing: they have no capability anyway",
    ),
)
"""All that any feature uses, the most needed first."""

LOG_RIGHTS: Final = (
    Right(
        "DAC_READ_SEARCH",
        2,
        False,
        "`logs:` of agent.yaml: files that pods write for their own user alone",
        "those files are not read",
    ),
    Right(
        "CHOWN",
        0,
        False,
        "`logs:` of agent.yaml: `logs.stateDirectory` is the collector's, which is no root",
        "no logs, where nobody has made that folder user 1337's",
    ),
)
"""What reading the pods' logs needs besides (``daemonset/components/logs``)."""

NET_ADMIN: Final = "NET_ADMIN"


def held(status: Path = Path("/proc/thread-self/status")) -> frozenset[str]:
    """Return which of RIGHTS and LOG_RIGHTS this thread has in its effective set. Raises OSError."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return frozenset(right.name for right in (*RIGHTS, *LOG_RIGHTS) if mask >> right.number & 1)


def lacking(names: Collection[str]) -> list[Right]:
    """Return those of RIGHTS that are not among *names*."""
    return [right for right in RIGHTS if right.name not in names]
