"""The two commands with what is wrong on the command line, in the environment and in files: one
line that says where, what and what is allowed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
POD = {
    "POD_NAME": "web",
    "POD_NAMESPACE": "default",
    "POD_UID": "u1",
    "POD_IPS": "10.0.0.1,fd00::1",
    "NODE_NAME": "node1",
}


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeagent", *map(str, arguments)]
    return subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **POD, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (status, 1, ""), done
    return done.stderr


@pytest.mark.parametrize(
    ("flag", "value", "wrong", "allowed"),
    [
        ("--inbound-ports", "80,http", "'http'", "ports from 1 to 65535"),
        ("--inbound-ports", "*,80", "'*,80'", "stands alone"),
        ("--exclude-inbound-ports", "*", "'*'", "not allowed"),
        ("--exclude-outbound-ports", "65536", "'65536'", "ports from 1 to 65535"),
        ("--include-outbound-ports", "0", "'0'", "ports from 1 to 65535"),
        ("--exclude-outbound-ports", "80\n-j ACCEPT", "'80\\n-j ACCEPT'", "ports from 1 to 65535"),
        ("--outbound-ranges", "10.0.0.0/33", "'10.0.0.0/33'", "networks such as"),
        ("--outbound-ranges", "*,10.0.0.0/8", "'*,10.0.0.0/8'", "stands alone"),
        ("--exclude-outbound-ranges", "example.com", "'example.com'", "networks such as"),
        ("--uid", "0", "0 is not", "range"),
        ("--gid", "x", "'x'", "integer"),
        ("--proxy-port", "70000", "70000", "range"),
        ("--inbound-capture-port", "0", "0 is not", "range"),
        ("--exclude-inbound-ports", ",".join(map(str, range(1, 2000))), "1999 entries", "at most 1024"),
    ],
)
def test_rules_that_cannot_be(flag: str, value: str, wrong: str, allowed: str) -> None:
    said = complaint(run("sidecar-init", "--dry-run", flag, value), 2)
    assert f"'{flag}'" in said
    assert wrong in said
    assert allowed in said


def test_a_range_is_masked_as_istio_does() -> None:
    assert (
        "-A ISTIO_OUTPUT -d 10.0.0.0/8 -p tcp -j ISTIO_REDIRECT"
        in run("sidecar-init", "--dry-run", "--outbound-ranges", "10.0.0.1/8").stdout
    )


def test_clean_and_dry_run_exclude_each_other() -> None:
    assert "--clean" in complaint(run("sidecar-init", "--dry-run", "--clean"), 2)


@pytest.mark.parametrize("name", POD)
def test_an_environment_that_does_not_say_which_pod_it_is(tmp_path: Path, name: str) -> None:
    assert name in complaint(run("sidecar", "--source", tmp_path, **{name: " "}), 1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("POD_IPS", "10.0.0.1,localhost", "'localhost'"),
        ("NODEAGENT_APP_PROBES", "{", "not JSON"),
        ("NODEAGENT_APP_PROBES", "[]", "dictionary"),
        ("NODEAGENT_APP_PROBES", "[" * 100_000, "not JSON"),
        ("NODEAGENT_APP_PROBES", json.dumps({"/metrics": {"tcpSocket": {"port": 80}}}), "/metrics"),
        ("NODEAGENT_APP_PROBES", json.dumps({"/app-health/c/readyz": {}}), "exactly one of httpGet, tcpSocket, grpc"),
        (
            "NODEAGENT_APP_PROBES",
            json.dumps({"/app-health/c/readyz": {"tcpSocket": {"port": "http"}}}),
            "tcpSocket.port",
        ),
        (
            "NODEAGENT_APP_PROBES",
            json.dumps({"/app-health/c/readyz": {"httpGet": {"port": 80, "path": "/" * 5000}}}),
            "httpGet.path",
        ),
        (
            "NODEAGENT_APP_PROBES",
            json.dumps({"/app-health/c/readyz": {"httpGet": {"port": 80}, "timeoutSeconds": 0}}),
            "timeoutSeconds",
        ),
        (
            "NODEAGENT_APP_PROBES",
            json.dumps(
                {"/app-health/c/readyz": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}}}
            ),
            "httpHeaders",
        ),
    ],
)
def test_an_environment_that_is_wrong(tmp_path: Path, name: str, value: str, words: str) -> None:
    said = complaint(run("sidecar", "--source", tmp_path, **{name: value}), 1)
    assert name in said
    assert words in said


@pytest.mark.parametrize(("arguments", "words"), [
    (("--source", "/nowhere"), "/nowhere: no such folder"),
    (("--source", "{tmp}", "--trust-domain", "Not A Domain"), "'Not A Domain'"),
    (("--source", "{tmp}", "-c", "{tmp}/none.yaml"), "none.yaml: cannot be read"),
    (("--source", "{tmp}", "-c", "{tmp}/unknown.yaml"), "unknown.yaml: prxy"),
    (("--source", "{tmp}", "-c", "{tmp}/mode.yaml"), "mode.yaml: mtls.mode"),
    (("--source", "{tmp}", "--access-log", "/nowhere/access.log"), "/nowhere/access.log"),
])  # fmt: skip
def test_files_that_are_wrong(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    (tmp_path / "unknown.yaml").write_text("prxy: {}\n")
    (tmp_path / "mode.yaml").write_text("mtls: {mode: LAX}\n")
    assert words in complaint(run("sidecar", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)), 1)


def test_the_drain_is_bounded(tmp_path: Path) -> None:
    assert "--drain-seconds" in complaint(run("sidecar", "--source", tmp_path, "--drain-seconds", "-1"), 2)
