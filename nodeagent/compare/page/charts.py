"""Charts as SVG for inside a page: drawn by matplotlib in placeholder colours, which become CSS
variables, so that theme and print are the page's.

Text stays text in the page's own font. Nothing outside the page is referred to.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from nodeagent.compare.page.look import MODES, OTHER, figure, known, microseconds, order, size, variable
from nodeagent.compare.page.shape import Run, ScaleRow

_TEXT: Final = "#fd0000"
_GRID: Final = "#fd0001"
_MUTED: Final = "#fd0002"
_MODE: Final = {name: f"#fe00{number:02x}" for number, name in enumerate([*MODES, OTHER.name])}
_PLACEHOLDERS: Final = {
    _TEXT: "currentColor",
    _GRID: "var(--grid)",
    _MUTED: "var(--muted)",
    **{colour: f"var({variable(mode)})" for mode, colour in _MODE.items()},
}
_STYLE: Final[dict[Any, Any]] = {  # keys are literals of matplotlib's own, some hundreds
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
}
_WIDTH: Final = 7.4
"""Inches, of 72 points: as wide as an A4 page between its margins."""
_BAR: Final = 0.30
"""Inches a row of bars takes."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: what it is, its mode (for the colour), value, text at its end, and the range of its rounds."""

    name: str
    mode: str
    value: float
    text: str
    lowest: float | None = None
    highest: float | None = None
    inner: float | None = None
    """A smaller value drawn in full colour within a pale bar: the p50 within the p99."""


def colour(mode: str) -> str:
    """Return the placeholder of *mode*'s colour: the page's style sheet gives it one for light and one for dark."""
    return _MODE[known(mode).name]


@contextmanager
def _axes(height: float, into: list[Markup], label: str) -> Iterator[Axes]:
    """Yield axes; afterwards append the drawing to *into*."""
    # The salt makes ids that are the same each time, and differ between the charts of a page.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": label}):
        drawn = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield drawn.add_subplot()
        buffer = io.StringIO()
        drawn.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    into.append(_inline(buffer.getvalue(), label))


def _inline(text: str, label: str) -> Markup:
    """Return matplotlib's SVG file *text* as an element of a page; *label* is what a screen reader says."""
    text = text[text.index("<svg") :]
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"#f[de]00[0-9a-f]{2}", lambda match: _PLACEHOLDERS.get(match[0], match[0]), text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox is not None
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {viewbox[0]} '
        f'role="img"><title>{escape(label)}</title>'
    )
    return Markup(head + text[text.index(">") + 1 :])  # matplotlib's writer has escaped every text in it


def _tick(show: Callable[[float], str]) -> FuncFormatter:
    """Return *show* for ticks, whose numbers are round: without zeros at the end of a fraction."""
    return FuncFormatter(lambda value, _: re.sub(r"(\.\d*?)0+(?!\d)", lambda match: match[1].rstrip("."), show(value)))


def _name(text: str) -> str:
    """Return *text* as it fits beside a chart; matplotlib leaves out of a legend what begins with an underscore."""
    return text.strip().lstrip("_")[:40] or "?"


def _legend(axes: Axes, count: int) -> None:
    axes.figure.legend(loc="outside upper left", ncols=min(4, count), columnspacing=1.4)


def _numbers(axis: mpl.axis.Axis, show: Callable[[float], str]) -> None:
    """Write the ticks of a logarithmic axis, between powers of ten too where it spans few of them."""
    low, high = axis.get_view_interval()
    within = (1.0, 2.0, 5.0) if high / low < 2000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=within, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_tick(show))
    axis.set_minor_formatter(NullFormatter())


def latency_curves(runs: Sequence[Run], label: str) -> Markup:
    """Return latency by percentile, one line a run: the x-axis is logarithmic in 1 / (1 - p), so
    that the tail has room.
    """
    into: list[Markup] = []
    with _axes(3.6, into, label) as axes:
        top = 10.0
        for run in sorted(runs, key=lambda run: order(run.mode)):
            points = [
                (100 / (100 - percentile), latency)
                for percentile, latency in run.percentiles
                if 0 <= percentile < 100 and latency > 0
            ]
            if points:
                how = known(run.mode)
                top = max(top, points[-1][0])
                axes.plot(
                    *zip(*points, strict=True), color=colour(run.mode), linestyle=how.dash, linewidth=how.width,
                    marker=how.marker, markersize=4.5, markevery=4, label=_name(f"{run.mode} {run.variant}"),
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1, top * 1.05)
        nines = [
            (1, "0 %"),
            (2, "50 %"),
            (10, "90 %"),
            (100, "99 %"),
            (1e3, "99.9 %"),
            (1e4, "99.99 %"),
            (1e5, "99.999 %"),
        ]
        axes.xaxis.set_major_locator(FixedLocator([x for x, _ in nines]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: dict(nines).get(round(value), "")))
        _numbers(axes.yaxis, microseconds)
        axes.set_xlabel("share of requests that were faster")
        axes.set_ylabel("latency")
        _legend(axes, len(runs))
    return into[0]


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    label: str,
    x: str,
    y: str,
    show: Callable[[float], str],
) -> Markup:
    """Return one line a mode through (x, y), both logarithmic; *x* and *y* name the axes."""
    into: list[Markup] = []
    with _axes(3.2, into, label) as axes:
        for mode, points in sorted(series, key=lambda each: order(each[0])):
            how = known(mode)
            axes.plot(
                *zip(*points, strict=True),
                color=colour(mode),
                linestyle=how.dash,
                linewidth=how.width,
                marker=how.marker,
                markersize=6,
                label=_name(mode),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        marks = sorted(set().union(*({x for x, _ in points} for _, points in series)))
        axes.xaxis.set_major_locator(FixedLocator(marks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _numbers(axes.yaxis, show)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(axes, len(series))
    return into[0]


def scale(
    points: Sequence[ScaleRow], of: Callable[[ScaleRow], float | None], label: str, show: Callable[[float], str] = size
) -> Markup:
    """Return a figure by the number of pods, one line a mode. What is zero or was not measured has no point."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda each: each.pods):
        if value := of(point):
            found.setdefault(point.mode, []).append((float(point.pods), value))
    return lines(list(found.items()), label, "pods on the node", label, show)


def bars(rows: Sequence[Bar], label: str, show: Callable[[float], str]) -> Markup:
    """Return horizontal bars from zero, each with its value written at its end."""
    into: list[Markup] = []
    with _axes(0.55 + _BAR * len(rows), into, label) as axes:
        longest = max(max(row.value, row.highest or 0) for row in rows) or 1
        for place, row in enumerate(rows):
            pale = row.inner is not None
            axes.barh(place, row.value, height=0.66, color=colour(row.mode), alpha=0.38 if pale else 1, linewidth=0)
            if row.inner is not None:
                axes.barh(place, row.inner, height=0.66, color=colour(row.mode), linewidth=0)
            if row.lowest is not None and row.highest is not None:
                axes.errorbar(
                    row.value,
                    place,
                    xerr=[[max(0, row.value - row.lowest)], [max(0, row.highest - row.value)]],
                    color=_TEXT,
                    linewidth=0.9,
                    capsize=2.5,
                )
            axes.annotate(
                row.text,
                (max(row.value, row.highest or 0), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
            )
        axes.set_yticks(range(len(rows)), [_name(row.name) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.28)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_tick(show))
    return into[0]


def throughput(value: float) -> str:
    """Return *value*, requests a second, as an axis shows it: thousands as ``k``."""
    return f"{value / 1000:,g}k" if value >= 1000 else figure(value)
