"""``nodeagent ca`` as a process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nodeagent.identity import authority_directory
from nodeagent.identity.authority_directory import certificates
from nodeagent.identity.ca import CertificateAuthority
from tests.unit.ca.test_service import ISSUER, WEB, Stage
from tests.waiting import LOOK_SECONDS

COMMAND = [sys.executable, "-m", "nodeagent", "ca"]


def ca(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_root_is_exchanged_step_by_step(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    CertificateAuthority.open_or_create(directory, "cluster.local")
    before = (directory / authority_directory.ROOTS).read_bytes()
    assert (
        ca("rotate-root", "prepare", "-d", str(directory)).stdout
        == "the new root is trusted beside the old one; next: switch\n"
    )
    early = ca("rotate-root", "switch", "-d", str(directory))
    assert (early.returncode, early.stdout) == (1, "")
    assert re.fullmatch(
        r"nodeagent: \S+: the step before was taken \d+ s ago: wait until .*, \d+ s more, or give --after\n",
        early.stderr,
    )
    assert ca("rotate-root", "finish", "-d", str(directory), "--after", "0").returncode == 1
    for step in ("switch", "finish"):
        assert ca("rotate-root", step, "-d", str(directory), "--after", "0").returncode == 0
    after = (directory / authority_directory.ROOTS).read_bytes()
    assert len(certificates(after)) == 1
    assert after != before


def test_an_authority_is_made_for_others_to_copy_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    made = ca("init", "-d", str(directory), "--trust-domain", "example.org")
    assert (made.returncode, made.stdout) == (0, f"{directory}: the authority of example.org is made\n")
    before = {path.name: path.read_bytes() for path in directory.glob("*.pem")}
    assert ca("init", "-d", str(directory), "--trust-domain", "example.org").stdout.endswith("is kept\n")
    assert {path.name: path.read_bytes() for path in directory.glob("*.pem")} == before
    assert CertificateAuthority.open_or_create(directory, "example.org")
    assert ca("init", "-d", str(directory)).returncode == 1  # it is another trust domain's


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["rotate-root", "prepare", "-d", "/nonexistent"], 1, "identity.caDirectory /nonexistent"),
        (["rotate-root", "back", "-d", "/"], 2, "'back' is not one of 'prepare', 'switch', 'finish'"),
        (["rotate-root", "prepare"], 2, "exactly one of --directory and --secret"),
        (["serve", "-c", "/nonexistent.yaml"], 1, "/nonexistent.yaml: cannot be read"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], status: int, words: str) -> None:
    ended = ca(*arguments)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith("nodeagent: ")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (tmp_path / "ca.yaml").write_text(
        yaml.safe_dump(stage.config.model_dump(mode="json", by_alias=True, exclude_none=True))
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, "serve", "-c", str(tmp_path / "ca.yaml")],
            stderr=file,
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        )
    try:
        while not (found := re.search(r"serving \S+ on 127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(LOOK_SECONDS)
        stage.server = type("Running", (), {"port": int(found[1])})()
        client = stage.client()

        async def ask() -> str:
            return (await client.issue(WEB, 60)).identity

        assert asyncio.run(ask()) == WEB
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    text = log.read_text()
    assert re.search(
        r"issued [0-9a-f]+ for spiffe://cluster\.local/ns/default/sa/web to "
        r"spiffe://cluster\.local/ns/system/sa/agent, 60 s",
        text,
    )
    assert "token" not in text
    assert "PRIVATE" not in text


def test_a_source_that_is_not_there_or_wrong_keys_end_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    document = stage.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    keys = tmp_path / "jwks.json"
    for change, words in (
        ({"source": str(tmp_path / "nowhere")}, "no such folder"),
        ({"authentication": {"serviceAccountTokens": {"keys": str(keys), "issuer": ISSUER}}}, "not a JWKS document"),
        ({"directory": str(stage.tokens)}, "identity.caDirectory"),
    ):
        keys.write_text("[]")
        (tmp_path / "ca.yaml").write_text(yaml.safe_dump({**document, **change}))
        ended = ca("serve", "-c", str(tmp_path / "ca.yaml"))
        assert ended.returncode == 1
        assert re.search(rf"^nodeagent: .*{words}", ended.stderr, re.MULTILINE)
