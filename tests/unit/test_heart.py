"""How long a process's silence is borne by one that may have stood still itself."""

from __future__ import annotations

from nodeagent.heart import Patience


def test_silence_that_was_heard_awake_is_too_long() -> None:
    patience = Patience(30, asleep=30)
    assert [patience.over(now, felt=now < 40) for now in (0, 10, 20, 30, 40)] == [False] * 4 + [True]


def test_who_is_heard_is_never_given_up() -> None:
    patience = Patience(30, asleep=30)
    assert not any(patience.over(now, felt=True) for now in range(0, 1000, 10))


def test_a_machine_that_stood_still_is_nobodys_silence() -> None:
    """Input: nobody looked for a minute, and nothing was heard. Verdict: from then on it counts anew."""
    patience = Patience(30, asleep=30)
    assert not patience.over(0, felt=True)
    assert not patience.over(60, felt=False)
    assert not patience.over(80, felt=False)
    assert patience.over(90, felt=False)


def test_nobody_is_blamed_at_the_first_look() -> None:
    assert not Patience(30, asleep=30).over(1000, felt=False)
