"""``nodeagent explain``: which policy and rule would decide, and why."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Final
from urllib.parse import urlencode

import click

from nodeagent.cli.admin import RunningAgent, choosing
from nodeagent.cli.output import Column, Output, Row, emit, output_option
from nodeagent.errors import ControlError

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""Of a method, or a field's name (RFC 9110, 5.6.2)."""
COLUMNS: Final = (Column("STAGE", "stage"), Column("WHAT", "words", wrap=True))


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.argument("method", default="")
@click.argument("path", default="/")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A field of the request; may be given several times.",
)
@choosing
@output_option
def explain(
    source: str,
    destination: str,
    method: str,
    path: str,
    headers: tuple[str, ...],
    agents: list[RunningAgent],
    output: Output,
) -> None:
    """Say what would happen to a connection of SRC to DST, or to a request METHOD PATH on it.

    SRC is [NAMESPACE/]POD, an address, a SPIFFE ID, or - for a client without identity; DST is
    [NAMESPACE/]NAME[:PORT] of a Service or pod, a Service's host, or ADDRESS:PORT. Of several
    agents the one on DST's node answers. The exit status is 0 when it is allowed, 3 when it is
    refused or depends on more.
    """
    if method and not _TOKEN.fullmatch(method):
        raise click.BadParameter(f"{method!r}: a method such as GET is expected", param_hint="METHOD")
    if path != "*" and (not path.startswith("/") or not path.isprintable()):
        raise click.BadParameter(f"{path!r}: a path that begins with / is expected", param_hint="PATH")
    lines = "\n".join(map(_line, headers))
    question = urlencode(
        {"source": source, "destination": destination, "method": method, "path": path, "headers": lines}
    )
    found = [_ask(list(of_lab), question) for _, of_lab in groupby(agents, key=lambda agent: agent.lab)]
    if output == "table":
        for answer in found:
            if len(found) > 1:
                print(f"{answer['node']}:")
            emit(answer["steps"], COLUMNS, output)
            print(answer["verdict"])
    else:
        emit(found, (), output)
    raise SystemExit(0 if all(answer["verdict"] == "allowed" for answer in found) else 3)


def _line(header: str) -> str:
    """Return a field as its line is read: without the white space around its value. Raises BadParameter."""
    name, colon, value = header.partition(":")
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name) or not value.replace("\t", " ").isprintable():
        raise click.BadParameter(f"{header!r}: NAME: VALUE is expected, on one line", param_hint="--header")
    return f"{name.lower()}: {value}"


def _ask(agents: list[RunningAgent], question: str) -> Row:
    """Return the answer of the agent of a mesh that knows most: the one on the destination's node.
    Raises ControlError.
    """
    answers = []
    errors = []
    for agent in agents:
        try:
            answers.append({"node": agent.name, **agent.get(f"/explain?{question}")})
        except ControlError as error:
            errors.append(error)
    if not answers:
        raise errors[0]
    return max(answers, key=lambda answer: (answer["verdict"] != "unknown", len(answer["steps"])))
