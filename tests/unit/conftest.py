"""For all unit tests: how Hypothesis looks for counterexamples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# An example that takes long on a busy machine is no counterexample; pytest's timeout ends what hangs.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
