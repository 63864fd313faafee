"""Everything that fails, in turn, on a cluster whose policies refuse; meanwhile clients ask for
what is refused, and nobody may answer them.

A target that answers is a breach, whatever failed at that moment. Errors are not: what protects
fails closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from nodeagent.errors import LabError
from nodeagent.lab import Lab
from nodeagent.lab.agent import Agent, merge
from nodeagent.lab.layout import ADDRESSES
from tests.netns.test_agent_ca import asking, served
from tests.netns.world import APPS, QUICK, account, client, client_argv, cluster, control, server, workers
from tests.waiting import eventually

RATE: Final = 50
NODES: Final = ("node1", "node2")
FRIEND: Final = "friend"
POD_ENTRIES: Final = (1024, 2048, 1500)
"""redirect.maps.pods, changed at restarts."""

_REFUSE_STRANGERS: Final = (
    "{action: DENY, selector: {matchLabels: {guard: deny}}, rules: [{from: [{source: {notPrincipals: "
    '["*/sa/friend"]}}]}]}'
)
POLICIES: Final = f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict, namespace: default}}
spec: {{selector: {{matchLabels: {{mtls: strict}}}}, mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: strangers, namespace: default}}
spec: {_REFUSE_STRANGERS}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: friends, namespace: default}}
spec: {{action: ALLOW, selector: {{matchLabels: {{guard: allow}}}}, rules: [{{from: [{{source: {{principals: ["*/sa/friend"]}}}}]}}]}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: default}}
spec: {{selector: {{matchLabels: {{guard: jwt}}}}, jwtRules: [{{issuer: nobody, jwks: '{{"keys": []}}'}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: bearers, namespace: default}}
spec: {{action: ALLOW, selector: {{matchLabels: {{guard: jwt}}}}, rules: [{{from: [{{source: {{requestPrincipals: ["*"]}}}}]}}]}}
"""  # noqa: E501
WRONG: Final = (
    (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: strangers, namespace: "
        "default}\nspec: !!bool x\n"
    ),
    "a: !!int ''\n",
    "a: 1:60.5e\n",
    "a: &a [*a]\n",
    '"\\ud800": {}\n',
    "[" * 5000,
    (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: friends, namespace: "
        "default}\nspec: {action: PERHAPS}\n"
    ),
    (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: "
        "default}\nspec: {mtls: {mode: 7}}\n"
    ),
)
GUARDED: Final = {
    "strict": "mtls: strict",
    "deny": "guard: deny",
    "allow": "guard: allow",
    "jwt": "guard: jwt",
    "quick": "guard: deny",  # decided by the kernel
}


def _servers() -> Iterator[str]:
    for node in NODES:
        for name, label in GUARDED.items():
            way = "nodeagent.io/path: kernel" if name == "quick" else ""
            yield server(f"{name}-{node}", node, account="server", labels=label, annotations=way)


TEXT: Final = "".join(
    (
        account("friend", "stranger", "server"),
        *(client(f"stranger-{node}", node, account="stranger") for node in NODES),
        *(client(f"plain-{node}", node, annotations='nodeagent.io/enroll: "false"') for node in NODES),
        client("friend", "node1", account="friend"),
        *_servers(),
    )
)


@dataclasses.dataclass
class Storm:
    """The cluster, the agents as they are started next, and the places where documents and the authority are."""

    lab: Lab
    folder: Path
    agents: dict[str, Agent]
    authority: ExitStack
    tell: Callable[[str], None]
    chance: random.Random

    def targets(self, source: str) -> list[str]:
        """Return where *source* asks: nobody has a token; STRICT alone lets strangers in by mTLS;
        the friend asks where it may.
        """
        left_out = {"stranger": {"strict"}, "plain": set(), FRIEND: {"jwt"}}[source.partition("-")[0]]
        return [
            f"{self.lab.address(f'{name}-{node}')}:8080" for node in NODES for name in GUARDED if name not in left_out
        ]

    # -- what fails --

    def kill_worker(self, node: str) -> None:
        for pid in workers(self.lab, node):
            os.kill(pid, signal.SIGKILL)

    def kill_control(self, node: str) -> None:
        if pid := self._control(node):
            os.kill(pid, signal.SIGKILL)

    def stop_control(self, node: str) -> None:
        """Stopped, not dead: nobody notices until it is late."""
        if pid := self._control(node):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(3)  # longer than redirect.heartbeatTimeoutSeconds
            os.kill(pid, signal.SIGCONT)

    def _control(self, node: str) -> int:
        """Return control's pid; 0: there is none at this moment."""
        try:
            return control(self.lab, node)
        except IndexError:
            return 0

    def kill_daemon(self, node: str) -> None:
        self.agents[node].kill()
        time.sleep(self.chance.uniform(0.5, 4))  # with no daemon, before and after its heartbeat has aged
        self.agents[node].start(wait_seconds=0)

    def restart(self, node: str) -> None:
        self.agents[node].stop()
        time.sleep(self.chance.uniform(0, 1))  # with no daemon
        self.agents[node].start(wait_seconds=0)

    def restart_with_other_maps(self, node: str) -> None:
        pods = self.chance.choice(POD_ENTRIES)
        overlay = merge(self.agents[node].overlay, {"redirect": {"maps": {"pods": pods}}})
        self.agents[node] = dataclasses.replace(self.agents[node], overlay=overlay)
        self.chance.choice((self.agents[node].stop, self.agents[node].kill))()
        self.agents[node].start(wait_seconds=0)

    def restart_without_authority(self, node: str) -> None:
        self.authority.close()
        self.restart(node)
        time.sleep(4)  # with nobody to sign
        self.authority.enter_context(served(self.lab, self.folder.parent))

    def wrong_documents(self, node: str) -> None:
        for number, text in enumerate(WRONG):
            (self.folder / f"wrong{number}.yaml").write_text(text)
        (self.folder / "policies.yaml").write_text(POLICIES.replace("DENY", "PERHAPS") + "---\n{" + WRONG[0])
        time.sleep(1)  # they are read, and refused
        self.kill_control(node)  # its successor reads them, too
        time.sleep(2)  # and its own reading
        for path in self.folder.glob("wrong*.yaml"):
            path.unlink()
        (self.folder / "policies.yaml").write_text(POLICIES)

    def reuse_addresses(self, node: str) -> None:
        """A protected pod goes, and its addresses come to another protected one, whose application
        listens only when it is enrolled.
        """
        name = f"deny-{node}"
        addresses = ",".join(self.lab.address(name, version=version) for version in (4, 6))
        self.lab.delete_pod(name)
        self.lab.apply(
            text=server(name, node, account="server", labels="guard: deny", annotations=f'{ADDRESSES}: "{addresses}"'),
            wait_seconds=60,
        )

    @property
    def failures(self) -> Sequence[Callable[[str], None]]:
        return (
            self.kill_worker, self.kill_control, self.stop_control, self.kill_daemon, self.restart,
            self.restart_with_other_maps, self.restart_without_authority, self.wrong_documents, self.reuse_addresses,
        )  # fmt: skip

    def recovered(self) -> None:
        """Wait until the agents are ready again; one that gave up is started by whoever watches daemons on a node."""
        for node in NODES:
            self.lab.wait_ready(60)
            try:
                self.agents[node].wait_ready(60)
            except LabError as error:
                self.tell(f"{node}: {str(error).splitlines()[0]}; it is started again")
                self.agents[node].kill()
                self.agents[node].start(wait_seconds=60)


@dataclasses.dataclass
class Asker:
    """A client that asks in *source*, and what came of it."""

    source: str
    process: subprocess.Popen[str]

    def report(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def asking_in(storm: Storm) -> Iterator[list[Asker]]:
    """Let every client ask for what is refused meanwhile; the last one is a friend, who may, and
    tells how much is served.
    """
    sources = [*(f"{kind}-{node}" for kind in ("stranger", "plain") for node in NODES), FRIEND]
    with ExitStack() as stack:
        askers = []
        for source in sources:
            argv = [client_argv()[0], str(APPS / "insistent.py"), str(RATE), *storm.targets(source)]
            pipe = subprocess.PIPE
            process = stack.enter_context(storm.lab.popen(source, argv, stdin=pipe, stdout=pipe, text=True))
            stack.callback(process.kill)
            askers.append(Asker(source, process))
        yield askers


@contextmanager
def storm(name: str, folder: Path, tell: Callable[[str], None], seed: int) -> Iterator[Storm]:
    """Bring the cluster up with an authority of its own; the refusals are in force when this enters."""
    policies = folder / "policies"
    policies.mkdir()
    (policies / "policies.yaml").write_text(POLICIES)
    with cluster(name, TEXT, agent=merge(QUICK, {"resources": [str(policies)]})) as lab, ExitStack() as authority:
        agents = {}
        for node in NODES:
            lab.agent(node).stop()
            base = asking(lab, node, folder)
            agents[node] = dataclasses.replace(base, overlay=merge(base.overlay, {"resources": [str(policies)]}))
        authority.enter_context(served(lab, folder))
        made = Storm(lab, policies, agents, authority, tell, random.Random(seed))
        try:
            for agent in agents.values():
                agent.start(wait_seconds=60)
            yield made
        finally:
            for agent in agents.values():
                with contextlib.suppress(LabError):
                    agent.kill()


def run(storm: Storm, seconds: float) -> list[str]:
    """Let things fail for *seconds*, each at least once; return what was answered that should have been refused."""
    with asking_in(storm) as askers:
        eventually(lambda: all(sum(asker.report()["outcomes"].values()) > RATE for asker in askers), "all ask")
        until, turn = time.monotonic() + seconds, 0
        while time.monotonic() < until or turn < len(storm.failures):
            failure, node = storm.failures[turn % len(storm.failures)], NODES[turn // len(storm.failures) % 2]
            failure(node)
            storm.recovered()
            turn += 1
            reports = [asker.report() for asker in askers]
            served, asked = reports[-1]["count"], sum(reports[-1]["outcomes"].values())
            refused_answered = sum(report["count"] for report in reports[:-1])
            storm.tell(
                f"{failure.__name__} on {node}: {refused_answered} answered so far; the friend: {served} of {asked}"
            )
        before = askers[-1].report()["count"]
        eventually(lambda: askers[-1].report()["count"] > before + RATE, "the friend is served again", 60)
        reports = {asker.source: asker.report() for asker in askers}
    for source, report in reports.items():
        storm.tell(f"{source}: {report['outcomes']}")
    return [
        f"{source}: {answer}" for source, report in reports.items() if source != FRIEND for answer in report["answered"]
    ]
