"""What of a pod's connections may pass where no proxy looks at them: while the daemon is dead or
late, and where one cannot be redirected. Pure.

A pod is protected when anything would refuse one of its connections: STRICT, an AuthorizationPolicy
that is in force, a RequestAuthentication, a RateLimit. Protected means both ways, as with a sidecar
that died: its policies say nothing about what it opens itself, but that would go out without its
identity, by which others decide. What the kernel decides alone (``mesh/kernel_plan.py``) goes on
for ``redirect.kernelPathTimeoutSeconds``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.mesh.entries import Entry, Workload
from nodeagent.policy.model import AuthorizationPolicy, RateLimit, RequestAuthentication
from nodeagent.vocabulary import WhenDead


@dataclass(frozen=True, slots=True)
class Protection:
    """``dead``: refuse while no daemon looks, both ways; ``unredirected``: refuse what the pod
    opens in a way that cannot be redirected.
    """

    dead: bool = False
    unredirected: bool = False
    ports: tuple[tuple[int, bool], ...] = ()
    """Workload ports, for connections to the pod, at which ``dead`` differs."""
    probed: tuple[int, ...] = ()
    """Workload ports at which the node's own processes are let in all the same: kubelet would
    restart what it cannot probe.
    """
    crowded: int = 0
    """How many ports would be told apart, were there room for so many; 0: there is."""


MAX_PORTS: Final = 64
"""Of a pod that are told apart: the node's pods share the kernel's map of them."""
OPEN: Final = Protection()
CLOSED: Final = Protection(dead=True, unredirected=True)


def protection(workload: Workload, policies: Iterable[Entry], setting: WhenDead) -> Protection:
    """Return what protects *workload*, to which *policies* apply.

    What the node may probe, it may probe while no daemon looks, at any path of that port; not under
    ``refuse``. ``pass`` and ``refuse`` decide about a dead daemon alone: what gets around a living
    one is refused where a policy protects the pod. A pod that would have more than MAX_PORTS ports
    told apart is refused as a whole, as if all of it were protected.
    """
    strict = workload.mtls == "STRICT"
    governed = any(map(protects, policies))
    if setting != "policy":
        return Protection(setting == "refuse", strict or governed)
    closed = strict or governed
    ports = (
        ()
        if governed
        else tuple((port, mode == "STRICT") for port, mode in workload.port_mtls if (mode == "STRICT") != strict)
    )
    probed = sorted({probe.port for probe in workload.probes if dict(ports).get(probe.port, closed)})
    apart = len({*dict(ports), *probed})
    if apart > MAX_PORTS:
        return replace(CLOSED, crowded=apart)
    return Protection(closed, closed, ports, tuple(probed))


def protects(policy: Entry) -> bool:
    """Say whether *policy* can refuse a connection or a request: AUDIT and a dry run only tell."""
    if isinstance(policy, AuthorizationPolicy):
        return policy.action != "AUDIT" and not policy.dry_run
    return isinstance(policy, RequestAuthentication | RateLimit)
