"""The composition root of the daemon: which code each of its processes runs.

Everything that more than one process needs is imported here, once, before the first fork.
"""

from __future__ import annotations

import logging
import sys

from nodeagent import supervisor
from nodeagent.config import AgentConfig
from nodeagent.control import main as control
from nodeagent.proxy import worker


def main(config: AgentConfig) -> int:
    """Run the daemon in the foreground until SIGTERM; return its exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    return supervisor.main(config, control.main, worker.main)
