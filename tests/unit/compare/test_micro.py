"""What the benchmark measures without a network is really done."""

from __future__ import annotations

from dataclasses import astuple

from nodeagent.compare import policies
from nodeagent.compare.micro import measure_micro


def test_single_decisions_are_measured(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    measure = policies.measure
    monkeypatch.setattr(policies, "measure", lambda: measure(20, 10))
    micro = measure_micro()
    assert all(value > 0 for value in astuple(micro))
    assert micro.jwt_cached_microseconds < micro.jwt_microseconds
