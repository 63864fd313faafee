"""The measurement of policies measures what it says."""

from __future__ import annotations

import pytest

from nodeagent.compare import policies
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Delta


def test_what_is_measured_does_something(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas: list[Delta] = []
    original = Mesh.apply
    monkeypatch.setattr(Mesh, "apply", lambda self, changes: (deltas.append(original(self, changes)), deltas[-1])[1])
    times = policies.measure(30, 10)
    assert [len(delta.upserts) for delta in deltas] == [40, 1]
    assert min(times) > 0
