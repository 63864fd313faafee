"""Which switches of which modes are measured, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nodeagent.compare import switches
from nodeagent.compare.labs import Missing
from nodeagent.compare.switches import Switch, Switched
from nodeagent.errors import NodeagentError


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[str, ...]]]:
    """What would be measured: mode, switch, settings. Pooling fails."""
    calls: list[tuple[str, str, tuple[str, ...]]] = []

    def compared(mode: str, settings: Sequence[Switch], seconds: int, rounds: int) -> list[Switched]:
        calls.append((mode, settings[0].switch, tuple(each.setting for each in settings)))
        if settings[0].switch == "pooling":
            raise NodeagentError("the lab did not come up")
        return []

    def native(mode: str) -> list[Switched]:
        calls.append((mode, "native sidecar", ()))
        return []

    monkeypatch.setattr(switches, "_compared", compared)
    monkeypatch.setattr(switches, "_native", native)
    return calls


def test_each_mode_has_its_switches_and_one_that_fails_is_told(
    measured: list[tuple[str, str, tuple[str, ...]]],
) -> None:
    missing: list[Missing] = []
    switches.measure_switches(1, 1, ("direct", "envoy", "nodeagent"), [], missing, lambda *_: None)
    names = {mode: [switch for of, switch, _ in measured if of == mode] for mode in ("direct", "envoy", "nodeagent")}
    assert names == {
        "direct": [],
        "envoy": ["buffer size", "pooling", "native sidecar"],
        "nodeagent": ["buffer size", "pooling", "busy polling"],
    }
    assert ("nodeagent", "busy polling", ("on", "off")) in measured
    assert [(each["what"], each["why"]) for each in missing] == [
        (f"{mode}: pooling", "the lab did not come up")
        for mode in dict.fromkeys(mode for mode, switch, _ in measured if switch == "pooling")
    ]
