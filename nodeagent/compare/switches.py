"""The switches by which sidecars are usually tuned (buffer size, pooling, native sidecars), one of
the agent's own, and what each changes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.compare import labs, load, manifests
from nodeagent.compare.labs import Missing
from nodeagent.compare.load import Workload
from nodeagent.compare.manifests import PLAIN
from nodeagent.compare.meshes import EnvoySidecars, NodeAgent
from nodeagent.compare.modes import Mode
from nodeagent.errors import NodeagentError
from nodeagent.lab import Lab

SWITCH_LAB: Final = "compare-switch"
_KINDS: Final[Mapping[str, type[Mode]]] = {"nodeagent": NodeAgent, "envoy": EnvoySidecars}
_PODS: Final = 5
_WAIT_SECONDS: Final = 90.0
Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Switch:
    """One setting of a switch; the first is what others are compared with. ``agent`` is merged into
    agent.yaml, ``values`` are the injector's; None: Envoy has no such switch.
    """

    switch: str
    setting: str
    workload: Workload
    agent: Settings
    values: Settings | None
    connections: int = 32


SWITCHES: Final = (
    Switch(
        "buffer size", "64 KiB", "bulk", {"proxy": {"limits": {"bufferBytes": 64 << 10}}}, {"bufferBytes": 64 << 10}
    ),
    Switch("buffer size", "8 KiB", "bulk", {"proxy": {"limits": {"bufferBytes": 8 << 10}}}, {"bufferBytes": 8 << 10}),
    Switch("buffer size", "1 MiB", "bulk", {"proxy": {"limits": {"bufferBytes": 1 << 20}}}, {"bufferBytes": 1 << 20}),
    Switch("pooling", "on", "http", {}, {}),
    Switch("pooling", "off", "http", {"proxy": {"limits": {"idleUpstreamConnections": 0}}}, {"pooling": False}),
    Switch("busy polling", "on", "http", {}, None, 1),
    Switch("busy polling", "off", "http", {"proxy": {"busyPollMicroseconds": 0}}, None, 1),
)


@dataclass(frozen=True, slots=True)
class Switched:
    """What *mode* does under a setting of a switch: *value*, in *unit*, of what *figure* says;
    ``against_default`` divides it by the figure of the first
    setting, of the same run.
    """

    switch: str
    setting: str
    mode: str
    workload: str
    figure: str
    value: float
    unit: str
    against_default: float


def measure_switches(
    seconds: int,
    rounds: int,
    modes: Sequence[str],
    found: list[Switched],
    missing: list[Missing],
    progress: Callable[[str, int, int], None],
) -> None:
    """Measure every switch of each of *modes* that has it, into *found*; what fails goes to *missing*."""
    for mode in (mode for mode in _KINDS if mode in modes):
        here = [switch for switch in SWITCHES if mode != "envoy" or switch.values is not None]
        for name in dict.fromkeys(switch.switch for switch in here):
            progress(f"{mode}: {name}", 0, 1)
            try:
                found += _compared(mode, [switch for switch in here if switch.switch == name], seconds, rounds)
            except (NodeagentError, OSError) as error:
                missing.append({"what": f"{mode}: {name}", "why": str(error)})
    for mode in (mode for mode in ("envoy", "sidecar") if mode in modes):
        progress(f"{mode}: native sidecar", 0, 1)
        try:
            found += _native(mode)
        except (NodeagentError, OSError) as error:
            missing.append({"what": f"{mode}: native sidecar", "why": str(error)})


def _compared(mode: str, settings: Sequence[Switch], seconds: int, rounds: int) -> list[Switched]:
    """Measure the *settings* of one switch in turn, round by round, each in a lab of its own."""
    names = [f"{SWITCH_LAB}-{number}" for number in range(len(settings))]
    values: list[list[float]] = [[] for _ in settings]
    try:
        ways = [_way(mode, setting, name) for setting, name in zip(settings, names, strict=True)]
        for turn in range(rounds + 1):
            for setting, way, taken in zip(settings, ways, values, strict=True):
                figure = _figure(way, setting, seconds if turn else 1)
                if turn:
                    taken.append(figure)
    finally:
        for name in names:
            Lab.remove(name)
    medians = list(map(statistics.median, values))
    of_all = settings[0]
    several = f"{of_all.connections} connection{'s' if of_all.connections > 1 else ''}"
    what, unit, scale = (
        ("throughput", "Gbit/s", 1e9) if of_all.workload == "bulk" else (f"requests/s, {several}", "/s", 1)
    )
    return [
        Switched(each.switch, each.setting, mode, each.workload, what, median / scale, unit, median / medians[0])
        for each, median in zip(settings, medians, strict=True)
    ]


def _way(mode: str, setting: Switch, name: str) -> Mode:
    Lab.remove(name)
    injection = {"values": {"tcpPorts": labs.TCP_PORTS, **(setting.values or {})}} if mode == "envoy" else None
    lab = Lab.up(
        text=manifests.workload(PLAIN),
        name=name,
        mode=mode,  # type: ignore[arg-type]
        agent=setting.agent,
        injection=injection,
        wait_seconds=_WAIT_SECONDS,
    )
    return _KINDS[mode](lab, setting.setting)


def _figure(way: Mode, setting: Switch, seconds: int) -> float:
    client = way.client(setting.workload)
    if setting.workload == "bulk":
        return load.stream(client, way.address(setting.workload), seconds).bits_per_second or 0.0
    return load.closed(client, way.url(setting.workload), setting.connections, seconds).rate


def _native(mode: Literal["envoy", "sidecar"] | str) -> list[Switched]:
    """How long until pods with a sidecar are ready, as a container beside the application and as one before it."""
    times: dict[str, float] = {}
    for setting, injection in (("container", {}), ("native", {"native": True})):
        with Lab.up(name=SWITCH_LAB, nodes=1, mode=mode, injection=injection) as lab:  # type: ignore[arg-type]  # one of the lab's modes
            started = time.monotonic()
            lab.apply(text=manifests.sleepers(range(_PODS)), wait_seconds=_WAIT_SECONDS)
            times[setting] = time.monotonic() - started
    figure = f"until {_PODS} pods are ready"
    return [
        Switched("native sidecar", setting, mode, "", figure, value, "s", value / times["container"])
        for setting, value in times.items()
    ]
