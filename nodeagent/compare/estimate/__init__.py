"""What the sidecars of a cluster request and use, read from its pods, and what one agent per node
would take in their place. Nothing is measured.
"""

from nodeagent.compare.estimate.agent import AgentCost
from nodeagent.compare.estimate.pods import EstimateError, parse, read
from nodeagent.compare.estimate.show import tables
from nodeagent.compare.estimate.sums import Estimate, estimate
from nodeagent.compare.estimate.top import usage

__all__ = ["AgentCost", "Estimate", "EstimateError", "estimate", "parse", "read", "tables", "usage"]
