"""The JSON object of a comparison, as it is written (``nodeagent compare -o json``, ``--output``,
``results.json`` of a report). Times are seconds or µs as the names say, memory is bytes.

What was measured is in ``run.py``; ``summary.py`` makes this of it, ``tables.py`` prints it, and
``page/shape.py`` reads it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict


class RunResult(TypedDict):
    """A figure of a mode under a workload: medians of its rounds."""

    mode: str
    variant: str
    workload: str
    load: Literal["open", "closed"]
    rate: int | None
    """Requests a second that were asked for, of an open loop."""
    connections: int
    pods: int
    """That take part."""
    requests_per_second: float | None
    """None for a stream, as ``bits_per_second`` is for requests."""
    bits_per_second: int | None
    latency_us: dict[str, float]
    """By ``p50``, ``p90``, ``p99``, ``p99.9``, as far as they were told."""
    percentiles: list[tuple[float, float]]
    cpu_us_per_request: float | None
    """CPU of what the mode adds."""
    all_cpu_us_per_request: float | None
    """CPU of client, server and mode."""
    memory_bytes: int | None
    errors: int
    lowest: float
    highest: float
    rounds: list[float]
    """Requests or bits a second."""
    latency_rounds_us: dict[str, list[float]]


class RatioResult(TypedDict):
    """A figure that is compared, with what must be reached and what is aimed at (None: nothing is asked)."""

    value: float
    lowest: float
    highest: float
    must: float | None
    aim: float | None
    better: Literal["more", "less"]
    unit: str
    reached: str | None
    """``aim``, ``must`` or ``missed``."""
    steady: bool
    """No round was far from the median."""
    before: float | None
    """What an earlier run said."""


class ScaleResult(TypedDict):
    """One mode with so many idle pods on a node."""

    mode: str
    pods: int
    memory_bytes: int
    idle_cpu_percent: float
    """Of one core."""
    ready_seconds: float


class SwitchResult(TypedDict):
    """What a mode does under one setting of a switch."""

    switch: str
    setting: str
    mode: str
    workload: str
    figure: str
    value: float
    unit: str
    against_default: float


ReportedLoad = Literal["plain", "cri", "steady", "down", "busy", "files", "beside"]
"""``beside``: while the proxy is measured too."""


class LogsResult(TypedDict):
    """What a program does that brings logs somewhere, under one load: medians of its rounds."""

    shipper: str
    load: ReportedLoad
    lines_per_second: float
    cpu_us_per_line: float
    cpu_percent: float
    """Of one core."""
    memory_bytes: int
    """At its highest; the agent's: above a daemon without a collector of logs."""
    memory_growth_bytes: int
    """More than near the beginning, with a sink that takes nothing, or after files came and went; else 0."""
    rounds: list[float]
    """Lines a second."""


class WorkResult(TypedDict):
    """What a mode does for a request, and what was checked of it, in words."""

    does: list[str]
    does_not: list[str]
    checked: list[str]
    failed: list[str]


class ClaimResult(TypedDict):
    """What the sidecar pattern's description claims, beside what each mode was measured to do."""

    claim: str
    seed: str
    measured: dict[str, str]


class ComparisonResult(TypedDict):
    """The whole object."""

    environment: dict[str, object]
    runs: list[RunResult]
    ratios: dict[str, RatioResult]
    scale: list[ScaleResult]
    claims: list[ClaimResult]
    work: dict[str, WorkResult]
    switches: list[SwitchResult]
    logs: list[LogsResult]
    micro: Mapping[str, float] | None
    """What single decisions cost, in the units of their names."""
    missing: list[dict[str, str]]
    notes: list[str]
