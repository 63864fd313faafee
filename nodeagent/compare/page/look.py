"""How modes, workloads and numbers look: one colour, line and marker a mode on every chart and in
every table, and units that a person reads.

Colours follow Okabe and Ito's palette for the colour-blind, darker on white and lighter on black;
lines and markers tell modes apart without any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Look:
    """How a mode is drawn; ``dash`` and ``marker`` as matplotlib names them."""

    name: str
    means: str
    light: str
    dark: str
    dash: str | tuple[float, tuple[float, ...]]
    marker: str
    width: float = 1.6


MODES: Final = {
    each.name: each
    for each in (
        Look("direct", "nothing between client and server", "#5f6672", "#aab2bf", ":", "x"),
        Look("haproxy", "one plain HAProxy hop in the client's pod", "#a8457f", "#e08fbd", (0, (5, 1, 1, 1)), "s"),
        Look("envoy-hop", "one plain Envoy hop in the client's pod", "#b07900", "#f0b429", "--", "^"),
        Look(
            "envoy",
            "classic sidecars: an Envoy in both pods, iptables, mTLS, access log",
            "#c04a00",
            "#ff8a4c",
            "-",
            "o",
            2.2,
        ),
        Look(
            "sidecar",
            "classic sidecars: nodeagent's own proxy in both pods, iptables, mTLS, access log",
            "#7a6a00",
            "#e8d74a",
            "-.",
            "D",
        ),
        Look(
            "nodeagent",
            "one agent per node, captured by eBPF, through its shared proxy",
            "#0060a8",
            "#5cb3f5",
            "-",
            "P",
            2.4,
        ),
        Look(
            "nodeagent-kernel",
            "the agent's kernel path: authorised once, then pod to pod",
            "#00795a",
            "#35c79b",
            (0, (6, 2)),
            "v",
            2.0,
        ),
        Look(
            "nodeagent-bypass",
            "sockets joined past TCP (opt-in): the kernel path, or the shared proxy",
            "#6d4fc4",
            "#b39df5",
            (0, (3, 1, 1, 1, 1, 1)),
            "*",
        ),
    )
}
OTHER: Final = Look("other", "", "#444444", "#cccccc", "-", ".")
WORKLOADS: Final = {
    "http": "HTTP request, pods on one node",
    "http-authz": "HTTP request under a policy of method, path and principal",
    "tcp": "request over a port declared as TCP",
    "tcp-churn": "a new connection for each request",
    "bulk": "one TCP stream, pods on one node",
    "chain5": "one request through five services",
    "cross-node": "HTTP request, pods on two nodes",
    "cross-node-churn": "a new connection for each request, pods on two nodes",
    "bulk-cross-node": "one TCP stream, pods on two nodes",
    "h2": "HTTP/2 request, one connection, pods on one node",
    "h2-many": "HTTP/2 request, several connections, pods on one node",
    "h2-cross-node": "HTTP/2 request, pods on two nodes",
    "h2-bulk": "1 GiB in one HTTP/2 stream, pods on one node",
    "grpc": "unary gRPC call, pods on one node",
    "grpc-stream": "messages of 1 KiB in gRPC streams, pods on one node",
}


def known(mode: str) -> Look:
    """Return how *mode* is drawn, a variant (``nodeagent (2 workers)``) like its mode; what this
    version does not know is grey.
    """
    return MODES.get(mode.partition(" ")[0], OTHER)


def drawn() -> list[Look]:
    """Return how every known mode is drawn, and what stands for unknown ones."""
    return [*MODES.values(), OTHER]


def order(mode: str) -> int:
    """Return the place of *mode* among the modes."""
    return drawn().index(known(mode))


def variable(mode: str) -> str:
    """Return the name of the CSS variable that holds the colour of *mode*."""
    return f"--mode-{known(mode).name}"


def dashes(how: Look) -> str:
    """Return the line pattern of *how* as SVG's stroke-dasharray takes it."""
    named = {"-": (), ":": (1.5, 3), "--": (6, 3), "-.": (6, 3, 1.5, 3)}
    lengths = named[how.dash] if isinstance(how.dash, str) else tuple(2 * length for length in how.dash[1])
    return " ".join(f"{each:g}" for each in lengths) or "none"


def figure(value: float) -> str:
    """Return *value* with three significant digits, or whole with thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def microseconds(value: float) -> str:
    """Return *value*, a duration in µs, in the unit that fits: µs, ms or s."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size:
            return f"{figure(value / size)} {unit}"
    return f"{value:.0f} µs" if value >= 10 else f"{figure(value)} µs"


def size(value: float) -> str:
    """Return *value*, bytes, in decimal units."""
    for unit, unit_size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= unit_size:
            return f"{figure(value / unit_size)} {unit}"
    return f"{value:.0f} B"


def gigabits(value: float) -> str:
    """Return *value*, bits a second, in Gbit/s."""
    return f"{figure(value / 1e9)} Gbit/s"


def times(value: float) -> str:
    """Return the ratio *value* with as many digits as a reader can use, and the sign ×."""
    for least, form in ((100, ",.0f"), (10, ".1f"), (0.1, ".2f")):
        if value >= least:
            return f"{value:{form}} ×"
    return f"{value:.2g} ×"


def share(value: float) -> str:
    """Return a ratio in words, to be followed by what it is of."""
    return f"{100 * value:.0f} % of" if value < 1.005 else f"{times(value).removesuffix(' ×')} times"
