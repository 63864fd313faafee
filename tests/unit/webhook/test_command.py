"""``nodeagent webhook`` as a process, and its configuration. With a real API server it is in tests/kube."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.config import load_as
from nodeagent.errors import ConfigError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.webhook.main import Webhook
from nodeagent.webhook.settings import Injection, WebhookConfig
from tests.unit.webhook.reviews import POD, body

ROOT = Path(__file__).parents[3]
RANGES = {"values": {"meshRanges": ["10.244.0.0/16"]}}


def write(folder: Path, **fields: Any) -> Path:
    path = folder / "webhook.yaml"
    base = {
        "directory": str(folder / "ca"),
        "names": ["127.0.0.1"],
        "address": "127.0.0.1",
        "port": 0,
        "telemetryPort": 0,
        "injection": RANGES,
    }
    path.write_text(yaml.safe_dump(base | fields))
    return path


def test_the_manifests_configuration_is_valid() -> None:
    config = load_as(ROOT / "daemonset" / "webhook" / "webhook.yaml", WebhookConfig)
    assert config.injection.settings().revision == "default"
    assert config.registration is not None


@pytest.mark.parametrize(
    ("values", "address", "expected"),
    [
        ({"meshRanges": ["10.96.0.0/12"]}, "10.96.0.1", ["10.96.0.1/32"]),
        ({"meshRanges": "10.0.0.0/8, fd00::/8"}, "fd00::1", ["fd00::1/128"]),
        (
            {"meshRanges": ["10.96.0.0/12"], "plaintextRanges": "10.97.0.0/16"},
            "10.96.0.1",
            ["10.97.0.0/16", "10.96.0.1/32"],
        ),
        ({"meshRanges": ["10.244.0.0/16"]}, "10.96.0.1", None),
        ({"meshRanges": ["10.244.0.0/16"]}, "", None),
        ({"meshRanges": ["10.244.0.0/16"]}, "kubernetes.default", None),
        ({"meshRanges": ["10.96.0.1/32", "10.244.0.0/16"]}, "10.96.0.1", None),
    ],
)
def test_the_api_server_is_reached_without_mtls(values: dict[str, Any], address: str, expected: Any) -> None:
    injection = Injection.model_validate({"values": values})
    assert injection.settings(address).values.get("plaintextRanges") == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": []}, "names"),
        ({"names": ["Bad_Host!"]}, "a host name in lower case or an address is expected"),
        ({"port": 70000}, "port"),
        ({"registration": {"name": "../x"}}, "registration.name"),
        ({"unknown": 1}, "unknown"),
        ({"injection": {**RANGES, "template": "nobody"}}, "injection: template"),
        ({"injection": {"values": {"meshRanges": ["x"]}}}, "injection: values.meshRanges"),
        ({"injection": {"values": {"nobody": 1}}}, "injection: values.nobody"),
        ({"registration": {"name": "x", "kubeconfig": "/nowhere"}}, "/nowhere: cannot be read: No such file"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        Webhook(
            load_as(write(tmp_path, **fields), WebhookConfig),
            CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local"),
        )


def test_readiness_tells_of_an_ended_certificate_and_a_failed_renewal_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio

    offset = 0.0
    authority = CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local", lambda: time.time() + offset)

    def get(webhook: Webhook, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{webhook.telemetry.port}{path}", timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def test() -> None:
        nonlocal offset
        webhook = Webhook(load_as(write(tmp_path), WebhookConfig), authority)
        await webhook.start()
        try:
            assert await asyncio.to_thread(get, webhook, "/ready") == (200, "ready\n")
            assert (
                'nodeagent_certificate_expiry_timestamp_seconds{identity="webhook"}'
                in (await asyncio.to_thread(get, webhook, "/metrics"))[1]
            )
            roots = (tmp_path / "ca" / "root-cert.pem").read_bytes()
            (tmp_path / "ca" / "root-cert.pem").write_bytes(b"not PEM")
            offset = 86401.0
            webhook.renew()
            assert "stays in force" in caplog.text
            offset = 2 * 365 * 86400.0
            webhook.renew()
            status, text = await asyncio.to_thread(get, webhook, "/ready")
            assert (status, text) == (503, "the serving certificate has ended: see the log\n")
            (tmp_path / "ca" / "root-cert.pem").write_bytes(roots)
            webhook.renew()
            assert (await asyncio.to_thread(get, webhook, "/ready"))[0] == 200
        finally:
            await webhook.stop()

    asyncio.run(test())


def test_the_command_serves_and_ends_by_a_signal(tmp_path: Path) -> None:
    path = write(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-m", "nodeagent", "webhook", "-c", str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stderr is not None
        line = next(line for line in child.stderr if "serving" in line)
        port = int(line.split("on port ")[1].split(",")[0])
        context = ssl.create_default_context(cafile=str(tmp_path / "ca" / "root-cert.pem"))
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}/inject/namespace", body(POD), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            assert b'"allowed":true' in response.read()
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.communicate()


def test_the_command_refuses_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nodeagent", "webhook", "-c", str(write(tmp_path, port="x"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "webhook.yaml: port:" in done.stderr
