"""The JSON object of a comparison, as the page reads it: every part may be absent, none may be something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nodeagent.errors import NodeagentError


class PageError(NodeagentError):
    """The object is not one of a comparison, or the page cannot be written."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Run(_Told):
    """A figure of a mode under a workload: medians of its rounds."""

    mode: str
    workload: str
    variant: str = ""
    load: Literal["closed", "open"] = "closed"
    rate: float | None = None
    """Requests/s that were asked for in an open loop."""
    connections: int = 0
    pods: int = 2
    requests_per_second: float | None = None
    bits_per_second: float | None = None
    latency_us: Mapping[str, float] = Field(default_factory=dict)
    percentiles: tuple[tuple[float, float], ...] = ()
    """(percentile, µs)."""
    cpu_us_per_request: float | None = None
    """Of the processes that the mode adds."""
    all_cpu_us_per_request: float | None = None
    """With client and server."""
    memory_bytes: float | None = None
    errors: int = 0
    late: int | None = None
    lowest: float | None = None
    highest: float | None = None
    rounds: tuple[float, ...] = ()
    latency_rounds_us: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)


class Ratio(_Told):
    """A figure with what it must be, what is aimed at, and what an earlier run said."""

    value: float
    lowest: float | None = None
    highest: float | None = None
    must: float | None = None
    aim: float | None = None
    better: Literal["more", "less"] = "more"
    unit: str = "×"
    reached: Literal["aim", "must", "missed"] | None = None
    steady: bool = True
    before: float | None = None


class ScaleRow(_Told):
    """What a mode adds to a node with so many pods."""

    mode: str
    pods: int = Field(ge=1)
    memory_bytes: float | None = None
    idle_cpu_percent: float | None = None
    """Of one core."""
    ready_seconds: float | None = None


class Claim(_Told):
    """What the sidecar pattern's description claims, and what each mode was measured to do."""

    claim: str
    seed: str = ""
    measured: Mapping[str, str] = Field(default_factory=dict)


class Work(_Told):
    """What a mode does for a request, and what was checked of it."""

    does: tuple[str, ...] = ()
    does_not: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class SwitchRow(_Told):
    """A setting of a switch, and one figure under it; ``against_default`` is by that of the first setting."""

    switch: str
    setting: str
    mode: str
    workload: str = ""
    figure: str = ""
    value: float | None = None
    unit: str = ""
    against_default: float | None = None


class Missing(_Told):
    """Something that was to be measured and was not."""

    what: str
    why: str = ""


class Summary(_Told):
    """The whole JSON object of a comparison."""

    environment: Mapping[str, object] = Field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    ratios: Mapping[str, Ratio] = Field(default_factory=dict)
    scale: tuple[ScaleRow, ...] = ()
    claims: tuple[Claim, ...] = ()
    work: Mapping[str, Work] = Field(default_factory=dict)
    switches: tuple[SwitchRow, ...] = ()
    micro: Mapping[str, object] = Field(default_factory=dict)
    """Single decisions, measured without traffic."""
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Mapping[str, object]) -> Summary:
        """Return the summary that *value* is; raises PageError, which names the field. None stands
        for an absent part.
        """
        try:
            return cls.model_validate({name: part for name, part in value.items() if part is not None})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise PageError(f"comparison: {where}: {fault['input']!r:.80}: allowed: {fault['msg']}") from None
