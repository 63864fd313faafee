"""For all unit tests: how Hypothesis looks for counterexamples."""

from __future__ import annotations

from hypothesis import settings

# An example that takes long on a busy machine is no counterexample; pytest's timeout ends what hangs.
settings.register_profile("unhurried")
settings.load_profile("unhurried")
