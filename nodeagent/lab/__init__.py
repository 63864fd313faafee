"""A cluster on one machine, without Kubernetes: nodes from namespaces, pods from processes."""

from nodeagent.lab.agent import Agent
from nodeagent.lab.cluster import Lab

__all__ = ["Agent", "Lab"]
