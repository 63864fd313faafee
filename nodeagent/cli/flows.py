"""``nodeagent flows``: who talks to whom, over which path, with which verdict."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import click

from nodeagent.cli.admin import RunningAgent, choosing
from nodeagent.cli.flow_rows import COLUMNS, Filter, last, readable
from nodeagent.cli.output import NODE, Column, Output, Row, cell, emit, emit_one, output_option
from nodeagent.errors import ControlError

POLL_SECONDS: Final = 0.5
_WIDTHS: Final = {"NODE": 10, "LASTED": 6, "FROM": 20, "TO": 24, "PATH": 11, "REQS": 4, "CODES": 7, "IN": 5, "OUT": 5}
"""Of the columns of a stream, which cannot know its longest line; the others are as wide as their titles need."""
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", value)
    if not match:
        raise click.BadParameter(f"{value!r}: a time such as 30s, 5m or 2h is expected")
    return int(match[1]) * float(_UNITS[match[2]])


def _codes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"[1-5](\d\d|xx)", value):
            raise click.BadParameter(f"{value!r}: a status code such as 403, or 5xx, is expected")
    return values


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on printing flows as they open and close.")
@click.option(
    "--from",
    "source",
    default="",
    metavar="POD",
    help="By client: [NAMESPACE/]POD, an address, or a SPIFFE ID; * and ? are wildcards.",
)
@click.option(
    "--to",
    "destination",
    default="",
    metavar="NAME",
    help="By server: a Service or pod, with or without namespace and port, or an address.",
)
@click.option("--namespace", default="", metavar="NAME", help="By the namespace of either side.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Choice(["allow", "deny", "error", "mixed", "pending"]),
    help="May be given several times.",
)
@click.option(
    "--code",
    "codes",
    multiple=True,
    metavar="CODE",
    callback=_codes,
    help="By one of the last status codes: 403, or 5xx; likewise.",
)
@click.option(
    "--since", metavar="TIME", callback=duration, help="Leave out what ended longer ago than that: 30s, 5m, 2h."
)
@click.option(
    "--last",
    "count",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    metavar="COUNT",
    help="How many of those that ended last; 0: all.",
)
@click.option("--probes", is_flag=True, help="The kubelet's probes too.")
@choosing
@output_option
def flows(
    follow: bool,
    source: str,
    destination: str,
    namespace: str,
    verdicts: tuple[str, ...],
    codes: tuple[str, ...],
    since: float | None,
    count: int,
    probes: bool,
    agents: list[RunningAgent],
    output: Output,
) -> None:
    """Print the connections of the agents' pods, through the proxy and past it, open ones and those
    that ended lately.

    The verdict is that of a connection's requests: allow, deny (by a policy), error (something
    failed), or mixed.
    """
    start = time.time() - since if since is not None else 0.0
    wanted = Filter(source, destination, namespace, frozenset(verdicts), codes, start, probes)
    columns = (NODE, *COLUMNS) if len(agents) > 1 else COLUMNS
    streams = [Stream(agent) for agent in agents]
    if not follow:
        found = [row for row in chain.from_iterable(stream.all() for stream in streams) if wanted.takes(row)]
        rows = last(found, count)
        emit([readable(row) for row in rows] if output == "table" else rows, columns, output)
        if output == "table" and len(found) > len(rows):
            print(f"the last {len(rows)} of {len(found)} connections: --last 0 shows all", file=sys.stderr)
        return
    _follow(streams, wanted, count, columns, output)


def _follow(streams: list[Stream], wanted: Filter, count: int, columns: tuple[Column, ...], output: Output) -> None:
    if output == "table":
        print(_line([column.title for column in columns], columns), flush=True)
    # Waited for, not handled: an exception while an object is being finalised is ignored by the
    # interpreter, and a handler that sets an Event waits for ever for its lock where it interrupts
    # the wait for that Event.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _print(last(_new(streams, wanted), count), columns, output)
    while not signal.sigtimedwait({signal.SIGINT}, POLL_SECONDS):
        _print(last(_new(streams, wanted), 0), columns, output)
    sys.exit(130)


def _new(streams: Iterable[Stream], wanted: Filter) -> Iterator[Row]:
    """Yield what the agents tell since they were asked last."""
    for stream in streams:
        for row in stream.poll():
            if wanted.takes(row):
                yield row


def _print(rows: Iterable[Row], columns: tuple[Column, ...], output: Output) -> None:
    for row in rows:
        if output == "table":
            print(_line([cell(column, readable(row)) for column in columns], columns), flush=True)
        else:
            emit_one(row, output)


class Stream:
    """The flows of one agent, each told when it is first seen and when it has closed."""

    def __init__(self, agent: RunningAgent) -> None:
        self._agent = agent
        self._since = 0
        self._open: set[str] = set()
        self._lost = False

    def all(self) -> list[Row]:
        """Return every flow that the agent knows. Raises ControlError."""
        return _rows(self._agent, self._agent.get("/flows?since=0"))

    def poll(self) -> Iterator[Row]:
        """Yield what opened or closed since the last call; an agent that is away is waited for, and said so once."""
        try:
            answer = self._agent.get(f"/flows?since={self._since}")
        except ControlError as error:
            if not self._lost:
                print(f"nodeagent: {error} waiting for it", file=sys.stderr)
            # A new agent counts from the start.
            self._lost = True
            self._since = 0
            self._open.clear()
            return
        self._lost = False
        self._since = answer["next"]
        for row in _rows(self._agent, answer):
            known = row["id"] in self._open
            if row["closed"]:
                self._open.discard(row["id"])
                yield row
            elif not known and row["verdict"] != "pending":
                self._open.add(row["id"])
                yield row


def _rows(agent: RunningAgent, answer: Row) -> list[Row]:
    return [{"node": agent.name, **flow} for flow in answer["flows"]]


def _line(cells: list[str], columns: tuple[Column, ...]) -> str:
    widths = [_WIDTHS.get(column.title, max(len(column.title), 8)) for column in columns]
    padded = [
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(cells, widths, columns, strict=True)
    ]
    return "  ".join(padded).rstrip()
