"""Programs of somebody else at the hooks where connections get their destination: who they are, when
they run, and what that means.

Cilium's socket load balancer, where it is on for pods, is at connect() too, and makes of a ClusterIP
an endpoint's address. The kernel runs what is attached to a cgroup before what is attached above it
(kernel/bpf/cgroup.c: compute_effective_progs), and Cilium is at the root. So ours come first, and
what is captured has 127.0.0.1 for its destination when others see it. Not so with what is attached
to the pods' cgroup itself by somebody who is there earlier on a kernel that has no order (before
6.17), below it, or with BPF_F_PREORDER: that one comes first, and the Service that was dialled is
not known any more.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nodeagent.redirect import hooks, syscall

_HOOKS: Final = tuple(
    hook for hook in hooks.CGROUP_HOOKS if hook.name.startswith(("connect", "getpeername", "getsockname"))
)
_OVERRIDE: Final = 1
_MULTI: Final = 2
_NAME: Final = slice(64, 80)
"""struct bpf_prog_info: name."""
SETTING: Final = "socketLB.hostNamespaceOnly: true (bpf-lb-sock-hostns-only)"
"""By which Cilium leaves the connections of pods alone."""

When = Literal["before", "after", "displaced", "alone"]
"""As it runs for a pod: before or after the agent's; not at all while the agent's is attached, for it
may be overridden from below; or alone, so that nobody else can be attached.
"""


@dataclass(frozen=True, slots=True)
class OtherProgram:
    """A program of somebody else."""

    hook: str
    name: str
    number: int
    cgroup: Path
    when: When


def others(captured: Path, own: Collection[int]) -> list[OtherProgram]:
    """Return what is attached to the cgroup *captured* and those above it, but for the programs with
    the numbers *own*. Raises OSError.
    """
    found: list[OtherProgram] = []
    with ExitStack() as opened:
        chain = [(cgroup, _opened(cgroup, opened)) for cgroup in _upwards(captured.resolve())]
        for hook in _HOOKS:
            found += _at(hook, chain, frozenset(own))
    return found


def _opened(cgroup: Path, until: ExitStack) -> int:
    fd = os.open(cgroup, os.O_RDONLY | os.O_CLOEXEC)
    until.callback(os.close, fd)
    return fd


def _at(hook: hooks.Hook, chain: list[tuple[Path, int]], own: frozenset[int]) -> Iterator[OtherProgram]:
    """*chain*: the captured cgroup and those above it, open."""
    attached = [syscall.program_query(fd, hook.attach_type) for _, fd in chain]
    if all(own.issuperset(numbers) for numbers, _ in attached):
        return
    captured, lowest = chain[0]
    order, _ = syscall.program_query(lowest, hook.attach_type, effective=True)
    first = next((place for place, number in enumerate(order) if number in own), None)
    for (cgroup, _), (numbers, flags) in zip(chain, attached, strict=True):
        for number in numbers:
            if number not in own:
                yield OtherProgram(
                    hook.name, _name(number), number, cgroup, _when(number, order, first, flags, cgroup == captured)
                )


def _when(number: int, order: list[int], first: int | None, flags: int, here: bool) -> When:
    """*first*: where in *order* the agent's program is; None: it is not attached."""
    if not flags & (_OVERRIDE | _MULTI) or (here and not flags & _MULTI):
        return "alone"
    if not flags & _MULTI:
        return "displaced"
    if first is None or number not in order:
        return "after"
    return "before" if order.index(number) < first else "after"


def _upwards(cgroup: Path) -> Iterator[Path]:
    """Yield *cgroup* and those above it, as far as this process sees them."""
    yield cgroup
    while not cgroup.is_mount():
        cgroup = cgroup.parent
        yield cgroup


def _name(number: int) -> str:
    try:
        fd = syscall.program_get(number)
    except OSError:  # it went meanwhile
        return ""
    try:
        return syscall.info(fd)[_NAME].rstrip(b"\0").decode(errors="replace")
    finally:
        os.close(fd)


_MEANING: Final[dict[When, str]] = {
    "before": (
        "run before the agent's: where they make an endpoint's address of a ClusterIP, the agent knows the pod that "
        f"is dialled and not its Service, whose routes and metrics are lost; with Cilium set {SETTING}"
    ),
    "after": "run after the agent's: nothing is lost",
    "displaced": (
        "run for no pod while the agent's are attached, for they were attached with BPF_F_ALLOW_OVERRIDE: what "
        f"they do for pods is lost, ClusterIPs of pods outside of the mesh for one; with Cilium set {SETTING} and "
        "have kube-proxy, or attach them with BPF_F_ALLOW_MULTI"
    ),
    "alone": (
        "let nobody else be attached there or below: the agent cannot capture; they have to be attached with "
        "BPF_F_ALLOW_MULTI"
    ),
}


def told(found: Collection[OtherProgram], *, harmless: bool = False) -> list[str]:
    """Say in words what the programs of *found* mean, once for all that are alike; *harmless*: also
    of those that take nothing from the agent.
    """
    alike: dict[tuple[Path, When], list[str]] = {}
    for other in found:
        if harmless or other.when != "after":
            name = f"{other.name or 'without a name'} ({other.hook}, number {other.number})"
            alike.setdefault((other.cgroup, other.when), []).append(name)
    return [f"{cgroup}: {', '.join(names)}: {_MEANING[when]}" for (cgroup, when), names in alike.items()]
