"""Whatever fails, nobody gets an answer that policy refuses: each failure once; ``make soak`` goes
on for ten minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns import chaos


@pytest.mark.timeout(600)
def test_what_is_refused_stays_refused_whatever_fails(tmp_path: Path) -> None:
    with chaos.storm("t-chaos", tmp_path, print, seed=1) as storm:
        assert chaos.run(storm, seconds=0) == []
