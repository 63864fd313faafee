"""The collector of garbage rests while much is read that stays, and works afterwards."""

from __future__ import annotations

import gc

import pytest

from nodeagent.memory import uncollected


def test_the_collector_works_again_when_the_last_of_overlapping_uses_has_ended() -> None:
    first, second = uncollected(), uncollected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_the_collector_works_again_after_an_error() -> None:
    def fails() -> None:
        with uncollected():
            assert not gc.isenabled()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fails()
    assert gc.isenabled()
