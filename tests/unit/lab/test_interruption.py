"""A command that is interrupted ends, wherever the signal finds it."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from nodeagent.lab.interruption import interruptible
from tests.waiting import DEADLINE

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_interrupt_and_afterwards_what_it_was(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible(SIGNALS):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_one_that_comes_while_an_object_is_finalised_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """The interpreter forgets an exception there; verdict: it comes again, and nothing is told of it."""

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    passed: list[str] = []

    def finalise() -> None:
        Finalised()
        passed.append("the interpreter forgot what was raised there")
        threading.Event().wait(DEADLINE)

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interruptible(SIGNALS):
        finalise()
    assert passed
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""
