"""``nodeagent flows``: who talks to whom, over which path, with which verdict."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from nodeagent.cli.admin import Agent, choosing
from nodeagent.cli.output import NODE, Column, Output, Row, cell, clock, emit, emit_one, output_option, size
from nodeagent.errors import ControlError

POLL_SECONDS: Final = 0.5
COLUMNS: Final = (
    *(Column("OPENED", "opened", clock), Column("CLOSED", "closed", clock), Column("DIRECTION", "direction"), Column("SOURCE", "source")),
    *(Column("DESTINATION", "destination"), Column("SERVICE", "service"), Column("PROTOCOL", "protocol"), Column("PATH", "path")),
    *(Column("VERDICT", "verdict"), Column("REASON", "reason"), Column("REQUESTS", "requests", right=True)),
    *(Column("RECEIVED", "received", size, right=True), Column("SENT", "sent", size, right=True)),
)
_WIDTHS: Final = {"NODE": 10, "DIRECTION": 9, "SOURCE": 28, "DESTINATION": 32, "SERVICE": 36, "PATH": 15, "REASON": 18}
"""Of the columns of a stream, which cannot know its longest line; the others are as wide as their titles need."""


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on printing flows as they open and close.")
@choosing
@output_option
def flows(follow: bool, agents: list[Agent], output: Output) -> None:
    """Print the connections of the agents' pods, through the proxy and past it; of the proxy's also those that closed lately."""
    columns = (NODE, *COLUMNS) if len(agents) > 1 else COLUMNS
    if not follow:
        rows = [row for agent in agents for row in _rows(agent, agent.get("/flows?since=0"))]
        emit(sorted(rows, key=lambda row: row["opened"]), columns, output)
        return
    if output == "table":
        print(_line([column.title for column in columns], columns), flush=True)
    streams = [Stream(agent) for agent in agents]
    # Waited for, not handled: an exception while an object is being finalised is ignored by the interpreter, and a handler that
    # sets an Event waits for ever for its lock where it interrupts the wait for that Event.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    while True:
        for row in sorted((row for stream in streams for row in stream.poll()), key=lambda row: row["closed"] or row["opened"]):
            if output == "table":
                print(_line([cell(column, row) for column in columns], columns), flush=True)
            else:
                emit_one(row, output)
        if signal.sigtimedwait({signal.SIGINT}, POLL_SECONDS):
            break
    sys.exit(130)


class Stream:
    """The flows of one agent, each told when it is first seen and when it has closed."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._since = 0
        self._open: set[str] = set()
        self._lost = False

    def poll(self) -> Iterator[Row]:
        """Yield what opened or closed since the last call; an agent that is away is waited for, and said so once."""
        try:
            answer = self._agent.get(f"/flows?since={self._since}")
        except ControlError as error:
            if not self._lost:
                print(f"nodeagent: {error} waiting for it", file=sys.stderr)
            # A new agent counts from the start.
            self._lost, self._since = True, 0
            self._open.clear()
            return
        self._lost = False
        self._since = answer["next"]
        for row in _rows(self._agent, answer):
            known = row["id"] in self._open
            if row["closed"]:
                self._open.discard(row["id"])
                yield row
            elif not known:
                self._open.add(row["id"])
                yield row


def _rows(agent: Agent, answer: Any) -> list[Row]:
    return [{"node": agent.name, **flow} for flow in answer["flows"]]


def _line(cells: list[str], columns: tuple[Column, ...]) -> str:
    widths = [_WIDTHS.get(column.title, max(len(column.title), 8)) for column in columns]
    padded = [text.rjust(width) if column.right else text.ljust(width) for text, width, column in zip(cells, widths, columns, strict=True)]
    return "  ".join(padded).rstrip()
