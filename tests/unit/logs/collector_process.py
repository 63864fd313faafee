"""The logs' collector as a process of its own: ``python collector_process.py DESCRIPTOR``, its end of the channel.

It is what the supervisor forks, but for its user, who stays the test's, and for how long it waits: before records go
to disk, before positions are written, and for what a rotated file turns out to be. It is killed sooner than that.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import sys
from functools import partial

from nodeagent.logs import collector
from nodeagent.logs.delivery import lane, spill
from nodeagent.logs.tail.interfaces import TailSettings
from nodeagent.proxy import privilege
from nodeagent.pulse import Pulses

PR_SET_PDEATHSIG = 1
SPILL_SECONDS = 0.2
RETRY_SECONDS = 0.2
ROTATED_SECONDS = 0.5
SAVE_SECONDS = 0.1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    setattr(privilege, "drop", lambda *_: None)  # noqa: B010
    setattr(lane, "SPILL_SECONDS", SPILL_SECONDS)  # noqa: B010
    setattr(spill, "RETRY_SECONDS", RETRY_SECONDS)  # noqa: B010
    hasty = partial(TailSettings, rotated_seconds=ROTATED_SECONDS, save_seconds=SAVE_SECONDS)
    setattr(collector, "TailSettings", hasty)  # noqa: B010
    collector.main(socket.socket(fileno=int(sys.argv[1])), Pulses().claim())
