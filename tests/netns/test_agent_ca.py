"""Agents that take their certificates from ``nodeagent ca``, and the exchange of the root under load."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.identity import authority_directory
from nodeagent.identity.authority_directory import certificates
from nodeagent.lab import Lab
from nodeagent.lab.agent import Agent, merge
from tests.netns.world import (
    QUICK,
    about,
    account,
    admin,
    client,
    client_in,
    cluster,
    cluster_ip,
    control,
    pod_row,
    server,
    workers,
)
from tests.waiting import eventually

TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        server("remote", "node2", account="server"),
    )
)
SERVER = "spiffe://cluster.local/ns/default/sa/server"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-ca", TEXT) as lab:
        yield lab


def rows(lab: Lab, node: str) -> list[dict[str, Any]]:
    found = admin(lab, node, "/certs")
    assert isinstance(found, list)
    return found


LOOKED_SECONDS = 8.0
"""Both agents have looked at the authority's directory after this: they do every 5 s, nobody says that they
did, and nothing shows it.
"""


def serials(lab: Lab) -> set[str]:
    return {row["serial"] for node in lab.nodes for row in rows(lab, node)}


def test_the_root_is_exchanged_without_a_failed_request(lab: Lab) -> None:
    directory = lab.layout.state / "ca"
    target = cluster_ip(lab, "remote")
    with ExitStack() as stack:
        loads = [
            stack.enter_context(client_in(lab, "client", "load", target, 80, "--connections", 2, *more))
            for more in ((), ("--fresh",))
        ]
        before = serials(lab)
        old = (directory / authority_directory.ROOTS).read_bytes()
        authority_directory.prepare(directory, time.time())
        time.sleep(LOOKED_SECONDS)  # both have looked
        authority_directory.switch(directory, time.time())
        eventually(lambda: not before & serials(lab), "all certificates are issued anew")
        authority_directory.finish(directory, time.time())
        time.sleep(LOOKED_SECONDS)  # both have looked
        assert about(lab, "client", f"http://{target}")["pod"] == "remote"
        for load in loads:
            counts = load.finish()
            assert counts.pop("ok") > 100
            assert counts == {}
    assert old not in (directory / authority_directory.ROOTS).read_bytes()
    assert len(certificates((directory / authority_directory.ROOTS).read_bytes())) == 1


@contextmanager
def served(lab: Lab, path: Path) -> Iterator[Path]:
    """Run the authority on node1; yields its log."""
    tokens = path / "tokens.yaml"
    tokens.touch(0o600)
    tokens.write_text(
        yaml.safe_dump([{"token": token(node), "account": "system/agent", "node": node} for node in lab.nodes])
    )
    document = {
        "directory": str(path / "ca"),
        "address": "0.0.0.0",
        "names": [lab.address("node1")],
        "source": str(lab.layout.state),
        "nodeAgents": ["system/agent"],
        "authentication": {"tokenFile": str(tokens)},
    }
    (path / "ca.yaml").write_text(yaml.safe_dump(document))
    argv = [sys.executable, "-m", "nodeagent", "ca", "serve", "-c", str(path / "ca.yaml")]
    with (path / "ca.log").open("w") as log, lab.popen("node1", argv, stderr=log) as process:
        try:
            eventually(
                lambda: "serving" in (path / "ca.log").read_text() or process.poll() is not None, "the authority serves"
            )
            yield path / "ca.log"
        finally:
            process.terminate()
            process.wait(timeout=60)


def token(node: str) -> str:
    return f"the-secret-token-of-{node}"


def asking(lab: Lab, node: str, path: Path) -> Agent:
    """Return the agent of *node* as a client of the authority on node1."""
    own, roots = path / f"{node}.token", path / "ca" / authority_directory.ROOTS
    own.write_text(token(node))
    ca = {"address": f"{lab.address('node1')}:15012", "tokenFile": str(own), "rootCertFile": str(roots), "timeout": 2}
    return dataclasses.replace(
        lab.agent(node), overlay=merge(QUICK, {"identity": {"caDirectory": None, "istioCa": ca}})
    )


def test_agents_ask_the_authority_as_soon_as_it_is_there(lab: Lab, tmp_path: Path) -> None:
    agents = [asking(lab, node, tmp_path) for node in lab.nodes]
    for agent in agents:
        agent.stop()
        agent.start(wait_seconds=0)
    try:
        row = eventually(lambda: _row(lab, "remote"), "the agent tells of the pod")
        assert (row["state"], row["listeners"]) == ("pending", 4)
        assert "no certificate for" in row["faults"][0]
        with served(lab, tmp_path) as log:
            for agent in agents:
                agent.wait_ready(60)
            assert (
                about(lab, "client", f"http://{cluster_ip(lab, 'remote')}")["headers"]
                .get("x-forwarded-client-cert", "")
                .count("spiffe://")
                == 2
            )
            issued = re.findall(r"issued \w+ for (\S+) to spiffe://cluster\.local/ns/system/sa/agent", log.read_text())
            assert sorted(issued) == ["spiffe://cluster.local/ns/default/sa/client", SERVER]
            texts = [log.read_text(), *(agent.log.read_text() for agent in agents)]
        # The authority is gone; what it issued holds, also when control dies.
        assert about(lab, "client", f"http://{cluster_ip(lab, 'remote')}")["pod"] == "remote"
        for node in lab.nodes:
            before = set(workers(lab, node))
            os.kill(control(lab, node), signal.SIGKILL)
            eventually(
                lambda node=node, before=before: replaced(lab, node, before), "its successor's worker serves alone", 60
            )
        assert (
            about(lab, "client", f"http://{cluster_ip(lab, 'remote')}")["headers"]
            .get("x-forwarded-client-cert", "")
            .count("spiffe://")
            == 2
        )
        assert not any("the-secret-token" in text or "PRIVATE" in text for text in texts)
    finally:
        for node, agent in zip(lab.nodes, agents, strict=True):
            agent.stop()
            lab.agent(node).start()


def replaced(lab: Lab, node: str, before: set[int]) -> bool:
    """Say whether there are workers, and none of *before*; while there is no control, they cannot be told from it."""
    with contextlib.suppress(IndexError):
        now = set(workers(lab, node))
        return bool(now) and before.isdisjoint(now)
    return False


def _row(lab: Lab, name: str) -> Any:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return pod_row(lab, name)
    return None
