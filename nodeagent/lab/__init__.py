"""A cluster on one machine, without Kubernetes: nodes from namespaces, pods from processes.

``cluster.py`` is a lab, ``agent.py`` a node's agent; ``injection.py`` gives pods classic sidecars
with the injector itself, ``root.py`` gives each pod its view of the machine's files,
``network_policies.py`` enforces NetworkPolicies by nftables. The kubelet's questions are asked by
``probing.py`` and ``health.py``, as a sidecar asks them.
"""

from nodeagent.lab.agent import Agent
from nodeagent.lab.cluster import Lab

__all__ = ["Agent", "Lab"]
