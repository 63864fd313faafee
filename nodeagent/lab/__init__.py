"""A cluster on one machine, without Kubernetes: nodes from namespaces, pods from processes.

``cluster.py`` is a lab, ``agent.py`` a node's agent; ``injection.py`` gives pods classic sidecars
with the injector itself, ``root.py`` gives each pod its view of the machine's files,
``network_policies.py`` enforces NetworkPolicies by nftables. The kubelet's questions are asked by
``probing.py`` and ``health.py``, as a sidecar asks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeagent.lab.agent import Agent
    from nodeagent.lab.cluster import Lab

__all__ = ["Agent", "Lab"]


def __getattr__(name: str) -> type[Agent] | type[Lab]:
    """Return what is asked for, imported then: a node's kubelet is a process of this package, and what
    makes a lab is most of what its start would cost.
    """
    if name == "Agent":
        from nodeagent.lab.agent import Agent

        return Agent
    if name == "Lab":
        from nodeagent.lab.cluster import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
