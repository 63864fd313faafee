"""For all unit tests: how Hypothesis looks for counterexamples.

In every run alike: a counterexample that is found by chance would refuse a change that it has
nothing to do with. Who looks for new ones runs `make explore`.
"""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

FOUND = DirectoryBasedExampleDatabase(Path(__file__).parents[2] / ".hypothesis" / "examples")
"""Counterexamples, until they pass."""

# An example that takes long on a busy machine is no counterexample; pytest's timeout ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", unhurried, derandomize=True, database=None)
settings.register_profile("explore", unhurried, derandomize=False, database=FOUND, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
