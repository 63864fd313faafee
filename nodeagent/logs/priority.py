"""How much of a processor the collector gets beside the proxy, and beside all else of the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

NICENESS: Final = 15
"""A log may wait, a request may not: where both want a processor, a proxy's process gets 28 times as much of it
(``sched_prio_to_weight``, kernel/sched/core.c). What is left, 3 %, is some 30,000 lines a second.
"""
SESSION_NICENESS: Final = 10
"""Where a session is what gets processors it is measured against all others of the machine, not against one proxy: a
tenth of what each of them gets, so that logs go on on a machine that has many.
"""
AUTOGROUP: Final = Path("/proc/self/autogroup")


def give_way() -> None:
    """Have this process run behind the rest of the daemon, and of the machine, though never not at all.

    Its weight is so small that who wakes up on its processor is owed a turn at once; beside one that is nicer by 5
    the scheduler (EEVDF) now and then ends the slice first, some ms. As a batch process (sched(7)) it takes no turn
    from who runs when it wakes up itself. SCHED_IDLE would be starved by a single busy process, and has no way back
    without privilege.

    Where kernels schedule by sessions (``kernel/sched/autogroup.c``) it is one of its own: of the daemon's it would
    use up what that one is due on a busy machine, and the proxy would wait for the next turn of both. Where no
    autogroups are, or a seccomp profile allows none of this, it does without.
    """
    os.nice(NICENESS)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError):
        os.setsid()
        AUTOGROUP.write_text(str(SESSION_NICENESS))
