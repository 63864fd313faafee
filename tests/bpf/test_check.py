"""``nodeagent check``: the truth about this machine, in every format, and clear words where it
cannot or must not work.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodeagent.config import Redirect
from nodeagent.errors import KernelError
from nodeagent.redirect import hooks, pins, preflight
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.preflight_ground import Ground
from tests.bpf.world import cgroup2

CHECK = [sys.executable, "-c", "from nodeagent.cli.main import main; main()", "check"]


def _check(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CHECK, *arguments], capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload]


def test_everything_is_tried_and_nothing_left() -> None:
    done = _check("-o", "json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0, rows
    assert {hook.name for hook in hooks.HOOKS} < {row["feature"] for row in rows}
    assert all(row["ok"] and row["detail"] for row in rows if row["needed"])
    assert not list(cgroup2().glob("nodeagent-check-*"))
    assert not list(Path("/sys/fs/bpf").glob("nodeagent-check-*"))


def test_table_and_yaml() -> None:
    table = _check()
    assert table.returncode == 0
    assert table.stdout.startswith("FEATURE")
    assert "the agent can work here" in table.stdout
    assert {"feature", "state", "detail", "lost"} < set(yaml.safe_load(_check("-o", "yaml").stdout)[0])


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    """Input: a PATH without any tool. Verdict: what is lost without wrk is said; the agent needs
    none of them, nor does trying the whole capture, whose wire is made over netlink.
    """
    done = _check("-o", "json", env={**os.environ, "PATH": str(tmp_path)})
    rows = {row["feature"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, rows
    assert (rows["wrk"]["state"], rows["wrk"]["detail"]) == ("absent", "not found; apt-get install wrk")
    assert rows["wrk"]["lost"] == "no benchmark"
    assert rows["nftables"]["state"] == "absent"
    assert rows["capture (BCC, all programs)"]["state"] == "ok"
    assert rows["sk_lookup"]["state"] == "ok"


def test_a_refusal_is_told_in_the_kernels_words() -> None:
    """Input: a kernel that does not know sk_lookup (here: a type that none knows). Verdict:
    missing, with what is lost.
    """
    unknown = hooks.Hook("sk_lookup", 9999, 36)
    check = preflight.Check("sk_lookup", preflight._hook(unknown), "connections to pods are not captured")
    with preflight.ground() as where:
        assert preflight._try(check, where) == preflight.Finding(
            "sk_lookup", False, True, "Invalid argument", "connections to pods are not captured"
        )


@pytest.fixture
def tried() -> Iterator[tuple[Ground, DataPlane]]:
    """The ground of a check, and a data plane there that notices soon when no daemon beats."""
    with preflight.ground() as where:
        settings = Redirect.model_validate(
            {"cgroup": where.cgroup, "pinDirectory": where.pins, "heartbeatTimeoutSeconds": 0.2}
        )
        plane = asyncio.run(DataPlane.load(settings, slots=2))
        try:
            yield where, plane
        finally:
            plane.close()
            pins.cleanup(where.pins)


def test_a_slow_machine_is_not_an_unfit_one(
    tried: tuple[Ground, DataPlane], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: a client whose start takes longer than the programs take a silent daemon for alive.
    Verdict: its connections are captured.
    """
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    where, plane = tried
    preflight._outbound(where, plane, "192.0.2.2")
    preflight._inbound(where, plane, "192.0.2.2")


def test_a_connection_that_is_refused_is_not_waited_for(tried: tuple[Ground, DataPlane]) -> None:
    """Input: a client that dials past every listener. Verdict: told in its words, long before the time is up."""
    where, plane = tried
    listeners = preflight._enroll(plane, where.server, "192.0.2.2")
    with (
        preflight._dialling(where, "192.0.2.1") as client,
        pytest.raises(KernelError, match="reached the listener: ConnectionRefusedError"),
        preflight._accepted(plane, listeners, client, "inbound", "192.0.2.2"),
    ):
        pass


@pytest.mark.parametrize("missing", ["setuid", "setgid"])
def test_a_right_that_is_missing_is_all_that_is_named(missing: str) -> None:
    """Input: root that may not become another user. Verdict: what cannot be tried for that is not called refused."""
    limited = ["setpriv", f"--bounding-set=-{missing}", "--inh-caps=-all", "--no-new-privs", *CHECK, "-o", "json"]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert [row["feature"] for row in json.loads(done.stdout) if row["state"] == "missing"] == [
        f"CAP_{missing.upper()}"
    ]


def test_without_root() -> None:
    """Input: nobody runs it. Verdict: exit 1 and one line that says what to do."""
    code = (
        "import os, nodeagent.cli.check, nodeagent.cli.main as m; os.setgroups([]); os.setresuid(65534, "
        "65534, 65534); m.main(['check'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "nodeagent: checking means to load BPF programs and to make network namespaces: run it as root, "
        "which the agent needs to be as well\n"
    )


def test_a_container_runtime_that_is_none_is_named(tmp_path: Path) -> None:
    """Input: agent.yaml of a node of a cluster, whose runtime's socket is a file."""
    socket = tmp_path / "containerd.sock"
    socket.touch()
    config = {
        "node": "node1",
        "kubernetes": {"runtime": str(socket)},
        "redirect": {"cgroup": str(cgroup2())},
        "identity": {"caDirectory": str(tmp_path)},
    }
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(config))
    done = _check("-o", "json", "-c", str(path))
    (row,) = (each for each in json.loads(done.stdout) if each["feature"] == "container runtime")
    assert done.returncode == 1
    assert (row["state"], row["detail"]) == ("missing", f"kubernetes.runtime: {socket}: is no socket")
