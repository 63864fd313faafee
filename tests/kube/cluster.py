"""A real Kubernetes API server with its etcd on loopback: no nodes, no controllers. Everything is
in one folder and ends with it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
READY_SECONDS = 240.0
TOKEN = "lab-admin"
_ports = itertools.count(20_000)


def free_port() -> int:
    """Return a TCP port of loopback that nobody has, nor will have: the kernel gives no such one to a client
    (net.ipv4.ip_local_port_range), and none is returned twice.
    """
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every number has a next one")


@contextmanager
def process(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* with its output in *log*; it is ended, and waited for, on the way out."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Cluster:
    """The API server, as its administrator sees it."""

    def __init__(self, kube: Path, folder: Path, port: int) -> None:
        self.folder = folder
        self.server = f"https://127.0.0.1:{port}"
        self._kube = kube
        self._context = ssl.create_default_context(cafile=str(folder / "pki" / "apiserver.crt"))
        self.kubeconfig = self.write_kubeconfig("admin", TOKEN)

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
        """Return status and object of a request."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type}
        request = urllib.request.Request(
            self.server + path, None if body is None else json.dumps(body).encode(), headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._context) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ok(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Return the object of a request that succeeds."""
        status, document = self.call(method, path, body, content_type)
        assert status < 300, document
        return document

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Return what kubectl prints."""
        command = [str(self._kube), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def namespace(self, name: str, **labels: str) -> None:
        """Make a namespace, with the service account that a controller would make in it."""
        self.ok("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        self.ok("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})

    def write_kubeconfig(self, user: str, token: str) -> Path:
        """Return a kubeconfig with which *user* comes with *token*."""
        path = self.folder / f"{user}.conf"
        cluster = {"server": self.server, "certificate-authority": "pki/apiserver.crt"}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}], "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return path


@contextmanager
def running(kube: Path) -> Iterator[Cluster]:
    """Return a cluster that is ready; *kube* is what ``make kube`` built."""
    folder = Path(tempfile.mkdtemp(prefix="nodeagent-kube-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        (folder / "pki").mkdir()
        subprocess.run(
            ["openssl", "genrsa", "-out", folder / "pki" / "sa.key", "2048"], check=True, capture_output=True
        )
        (folder / "pki" / "tokens.csv").write_text(f'{TOKEN},admin,1,"system:masters"\n')
        etcd, port = f"http://127.0.0.1:{free_port()}", free_port()
        etcd_log, server_log = folder / "etcd.log", folder / "apiserver.log"
        # No peers: its peer port is on loopback all the same.
        urls = (
            "--listen-client-urls",
            etcd,
            "--advertise-client-urls",
            etcd,
            "--listen-peer-urls",
            f"http://127.0.0.1:{free_port()}",
        )
        stack.enter_context(process(etcd_log, "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync", *urls))
        server = stack.enter_context(process(server_log, kube, "apiserver", *_flags(folder / "pki", etcd, port)))

        def ready() -> bool:
            assert server.poll() is None and _is_ready(folder, port), f"no API server: {server_log.read_text()[-3000:]}"
            return True

        eventually(ready, seconds=READY_SECONDS)
        yield Cluster(kube, folder, port)


def _flags(pki: Path, etcd: str, port: int) -> list[str]:
    flags = {
        "etcd-servers": etcd,
        "cert-dir": pki,
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "token-auth-file": pki / "tokens.csv",
        "advertise-address": "127.0.0.1",
        "endpoint-reconciler-type": "none",
        "service-cluster-ip-range": "10.96.0.0/16",
        "authorization-mode": "RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": pki / "sa.key",
        "service-account-signing-key-file": pki / "sa.key",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def _is_ready(folder: Path, port: int) -> bool:
    certificate = folder / "pki" / "apiserver.crt"
    if not certificate.exists():
        return False
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", timeout=60, context=context):
            return True
    except (OSError, ssl.SSLError):
        return False
