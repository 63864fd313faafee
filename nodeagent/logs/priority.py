"""How much of a processor the collector gets beside the proxy: what the rest of the daemon leaves."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

NICENESS: Final = 19


def give_way() -> None:
    """Have this process run behind the rest of the daemon, though never not at all.

    A log may wait, a request may not. Who wakes up takes the processor from an idle process (SCHED_IDLE) at once,
    whatever either is owed (``check_preempt_wakeup_fair``, kernel/sched/fair.c). From one that is only nicer it does
    not always: what a proxy had beyond its share while both wanted it is paid back then, in pieces that last until
    the next tick, up to 4 ms, which are the slowest requests. Where a proxy never sleeps an idle process has 0.3 % of
    its processor (weight 3 of 1,024), some 2,000 lines a second.

    It stays in the daemon's session: where kernels schedule by sessions (``kernel/sched/autogroup.c``) nobody is idle
    between two of them. Where a seccomp profile allows none of this, it is as nice as can be.
    """
    os.nice(NICENESS)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
