"""Signals that end a command are KeyboardInterrupt wherever it is, so that it takes away what it made."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

AGAIN_SECONDS: Final = 0.05


@contextmanager
def interruptible(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Have *signals* raise KeyboardInterrupt meanwhile, in the main thread.

    The interpreter tells and forgets an exception that comes while an object is finalised; the
    signal comes again then.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def lost(args: sys.UnraisableHookArgs) -> None:
        if not issubclass(args.exc_type, KeyboardInterrupt):
            told(args)
            return
        again = partial(signal.pthread_kill, threading.main_thread().ident or 0, signals[0])
        threading.Timer(AGAIN_SECONDS, again).start()

    told = sys.unraisablehook
    before = {number: signal.signal(number, interrupt) for number in signals}
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():
            signal.signal(number, handler)
