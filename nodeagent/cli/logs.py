"""``nodeagent logs``: what pods write, as it stands in the files of their nodes; ``nodeagent logs import``."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from heapq import nlargest
from itertools import chain
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import click

from nodeagent.cli.admin import RunningAgent, choosing
from nodeagent.cli.flows import duration
from nodeagent.cli.output import Output, Row, emit_one, output_option
from nodeagent.errors import ControlError

if TYPE_CHECKING:
    from typing import Any

POLL_SECONDS: Final = 0.5
LINE_CHARACTERS: Final = 1 << 20
"""Of a line that came in parts: more is printed as several."""


class _WithImport(click.Command):
    """``import`` in the place of POD is a command of its own; a pod of that name is default/import."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["import"]:
            from nodeagent.cli.logs_import import import_

            return import_.make_context(f"{info_name} import", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _expression(context: click.Context, parameter: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r}: a regular expression is expected: {error}") from None


@click.command(
    cls=_WithImport, epilog="nodeagent logs import FLUENT.CONF|YAML: what a Fluentd configuration becomes here."
)
@click.argument("pod", metavar="[POD]", default="")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of POD, where it does not say its own.")
@click.option(
    "-c",
    "--container",
    "source",
    default="",
    metavar="NAME|VOLUME/PATH",
    help="Of one container, or one file of a volume; all, if not given.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=duration,
    help="Leave out what is older: 30s, 5m, 2h; of files in volumes, whose lines have no time, all but the end. "
    "Without POD: 1m, or 0s with -f.",
)
@click.option("--tail", "count", type=click.IntRange(0), metavar="COUNT", help="Of what there is, only the last lines.")
@click.option("--grep", "pattern", metavar="REGEX", callback=_expression, help="Only lines in which this is found.")
@choosing
@output_option
def logs(
    pod: str,
    follow: bool,
    namespace: str,
    source: str,
    since: float | None,
    count: int | None,
    pattern: re.Pattern[str] | None,
    agents: list[RunningAgent],
    output: Output,
) -> None:
    """Print what the files of a node hold of POD's logs (POD or NAMESPACE/POD), or of all its pods: their
    containers' output, and the files in volumes that are collected.

    It is read at the node, whether or not a sink has it. Rotated files are read too, as long as they are there.
    """
    if since is None and not pod:
        since = 0.0 if follow else 60.0
    start = 0.0 if since is None else time.time() - since
    wanted = f"{namespace}/{pod}" if pod and "/" not in pod else pod
    readers = [LogLines(agent, wanted, source, start, pattern) for agent in agents]
    printer = Printer(output, named=not pod or not source)
    found: Iterable[Row] = chain.from_iterable(reader.read() for reader in readers)
    printer.print(found if count is None else latest(found, count))
    if wanted and not any(reader.known for reader in readers):
        raise ControlError(_first_reason([each.refusal for each in readers]))
    if not follow:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # waited for, as in nodeagent flows
    while not signal.sigtimedwait({signal.SIGINT}, POLL_SECONDS * (1 + max(len(each.pods) for each in readers) // 20)):
        printer.print(chain.from_iterable(reader.read() for reader in readers))
    sys.exit(130)


def _first_reason(refusals: list[str]) -> str:
    """Return why nothing is printed: what the node of the pod says goes before that others have it not."""
    from nodeagent.control.log_text import NOT_HERE  # only who is refused pays for it

    return next((each for each in refusals if NOT_HERE not in each), refusals[0])


def latest(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the *count* last of *rows*, by time: each file's follow one another, not those of several."""
    found = nlargest(count, enumerate(rows), key=lambda row: (row[1]["time"].removesuffix("Z"), row[0]))
    return [row for _, row in reversed(found)]


class LogLines:
    """The lines of one agent's pods, each yielded once."""

    def __init__(
        self, agent: RunningAgent, pod: str, source: str, since: float, pattern: re.Pattern[str] | None
    ) -> None:
        """*pod*: ``NAMESPACE/NAME``; empty: all. *since*: seconds since the epoch."""
        self._agent = agent
        self._pod = pod
        self._source = source
        self._since = since
        self._pattern = pattern
        self.pods = [pod] if pod else []
        """That are asked for; each costs the agent a look into its folders."""
        self._cursors: dict[str, str] = {}
        self._parts: dict[tuple[str, str, str], str] = {}
        self._refused: set[tuple[str, str]] = set()
        """What was said to be not read, of which pod."""
        self.known = False
        """The pod is one of this agent's."""
        self.refusal = ""
        """Why it is not."""

    def read(self) -> Iterator[Row]:
        """Yield what was written since the last call."""
        if not self._pod:
            self.pods = [str(each) for each in self._agent.get("/logs/pods")["pods"]]
        for pod in self.pods:
            yield from self._of(pod)

    def _of(self, pod: str) -> Iterator[Row]:
        more = True
        while more:
            asked = {"pod": pod, "source": self._source, "since": self._since, "cursor": self._cursors.get(pod, "")}
            try:
                answer = self._agent.get(f"/logs/text?{urlencode(asked)}")
            except ControlError as error:
                self.refusal = str(error)
                return
            self.known = True
            self._cursors[pod] = answer["cursor"]
            more = answer["more"]
            for why in answer["refused"]:
                if (pod, why) not in self._refused:
                    self._refused.add((pod, why))
                    click.echo(f"{pod}: {why}", err=True)
            for line in answer["lines"]:
                yield from self._whole(pod, line)

    def _whole(self, pod: str, line: Row) -> Iterator[Row]:
        """Join what came in parts; yield the line, if it is wanted."""
        key = (pod, line["source"], line["stream"])
        text = self._parts.pop(key, "") + line["text"]
        if line["partial"] and len(text) < LINE_CHARACTERS:
            self._parts[key] = text
            return
        if self._pattern is not None and not self._pattern.search(text):
            return
        namespace, _, name = pod.partition("/")
        yield {
            "node": self._agent.name,
            "namespace": namespace,
            "pod": name,
            "source": line["source"],
            "time": line["time"],
            "stream": line["stream"],
            "text": text,
        }


class Printer:
    """Prints lines as they come."""

    def __init__(self, output: Output, *, named: bool) -> None:
        """*named*: say before each line whose it is, where there are several."""
        self._output = output
        self._named = named
        self._sources: set[tuple[str, str]] = set()
        self._terminal = sys.stdout.isatty()

    def print(self, rows: Iterable[Row]) -> None:
        """Print *rows*."""
        for row in rows:
            if self._output != "table":
                emit_one(row, self._output)
                continue
            head = f"{row['pod']}/{row['source']} | " if self._named else ""
            text = head + row["text"]
            if self._terminal and not text.isprintable():
                text = "".join([each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in text])
            print(text)
        sys.stdout.flush()
