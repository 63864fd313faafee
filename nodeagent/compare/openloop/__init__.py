"""Open-loop load: requests leave when a constant schedule says, whether or not earlier ones were
answered.

A closed loop (wrk) sends its next request only after the last answer, so a server that stalls is
asked less and its stall is counted once (coordinated omission). Here a stall delays every request
that was due meanwhile, and each is counted from the moment it was due.

``flow.py`` decides when what is sent, without a socket or a clock; ``client.py`` carries it out.
"""

from nodeagent.compare.openloop.client import OpenLoopError, run
from nodeagent.compare.openloop.flow import Schedule
from nodeagent.compare.openloop.target import HttpTarget

__all__ = ["HttpTarget", "OpenLoopError", "Schedule", "run"]
