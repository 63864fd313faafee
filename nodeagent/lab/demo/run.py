"""The course of the demo: two labs, the same requests in both, and then nothing of it is left."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from rich.console import Console

from nodeagent.errors import LabError
from nodeagent.lab import Lab
from nodeagent.lab.cluster import Mode
from nodeagent.lab.demo import logs
from nodeagent.lab.demo.agents import footprints, proofs, scrape
from nodeagent.lab.demo.application import manifest
from nodeagent.lab.demo.findings import Findings
from nodeagent.lab.demo.traffic import measure, visit
from nodeagent.lab.demo.wiretap import record
from nodeagent.lab.interruption import interruptible

LABS: Final[dict[Mode, str]] = {"direct": "demo-direct", "nodeagent": "demo"}
_WIDTH: Final = 90
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Steps:
    """Tells the user what is going on: a spinner meanwhile (on a terminal), a line with the time it took afterwards."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say *what* goes on, and how long it took; a step that fails says nothing more."""
        started = time.monotonic()
        with self._console.status(f"[dim]{what}"):
            yield
        self.done(what, started)

    def done(self, what: str, started: float) -> None:
        """Say that *what*, begun at *started* (monotonic), is done."""
        room = min(self._console.width, _WIDTH) - len("  ✓  99.9 s")
        self._console.print(f"  [green]✓[/] {what:<{room}} [dim]{time.monotonic() - started:4.1f} s")


def run(console: Console, requests: int) -> Findings:
    """Carry the demo out with *requests* pages and return what it has found; its labs are gone
    then, and also after an error or a signal.

    Raises LabError and other NodeagentErrors, and KeyboardInterrupt for SIGINT, SIGTERM and SIGHUP.
    """
    steps = Steps(console)
    with _alone(), interruptible(_ENDING):
        try:
            return _carry_out(steps, requests)
        finally:
            _ignore_signals()
            started = time.monotonic()
            with ExitStack() as labs:  # nothing is printed before: the terminal may be what has gone
                for name in LABS.values():
                    labs.callback(Lab.remove, name)
            steps.done("everything is removed again", started)


def _carry_out(steps: Steps, requests: int) -> Findings:
    reader = f"reader-{secrets.token_hex(8)}"
    yaml = manifest()
    for name in LABS.values():
        Lab.remove(name)  # what a killed demo has left
    with steps.step("a lab without agents: two nodes, bookinfo in seven pods"):
        direct = Lab.up(text=yaml, name=LABS["direct"], mode="direct")
    with steps.step("the same lab with one agent a node"):
        settings = logs.settings(LABS["nodeagent"])
        agent = Lab.up(text=yaml, name=LABS["nodeagent"], mode="nodeagent", agent=settings)
    with steps.step(f"{requests} pages without agents, tcpdump between the nodes"), record(direct) as direct_tap:
        direct_visit = visit(direct, reader, requests)
    with steps.step(f"{requests} pages through the agents, tcpdump again"), record(agent) as agent_tap:
        before = scrape(agent)
        agent_visit = visit(agent, reader, requests)
        after = scrape(agent)
    with steps.step("the frontend's log, collected by its node's agent"):
        collected = logs.collected(agent, reader, requests)
    with steps.step("latency over one connection, both labs in turn"):
        latencies = measure(direct, agent, reader)
    return Findings(
        reader=reader,
        requests=requests,
        direct=direct_visit,
        agent=agent_visit,
        direct_underlay=direct_tap.examine(reader.encode()),
        agent_underlay=agent_tap.examine(reader.encode()),
        paths=after.paths() - before.paths(),
        proofs=proofs(after),
        logs=collected,
        latencies=latencies,
        footprints=footprints(agent),
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Hold a name of the kernel's meanwhile that only one demo can have, and that a killed one
    gives back; raises LabError if it is taken.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind("\0nodeagent-demo")
        except OSError:
            raise LabError("another demo is running on this machine: wait for it, or end it") from None
        yield


def _ignore_signals() -> None:
    """Let nothing interrupt the clearing away: it takes a moment."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
