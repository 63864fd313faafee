"""The command ``nodeagent webhook``, registered in a cluster by its own manifest, of which only the
address is another.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import yaml

from tests.kube.cluster import ROOT, Cluster, free_port
from tests.waiting import eventually

REGISTRATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodeagent-sidecar-injector"
NAMESPACE, ACCOUNT = "nodeagent-system", "nodeagent-webhook"
OWN_POD = "nodeagent-webhook-0"
OWN_IMAGE = "registry.example/mesh/nodeagent:own"
STRATEGIC = "application/strategic-merge-patch+json"


def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until *condition* holds; a generous bound, and no measure of speed."""
    eventually(condition, what, seconds)


class Webhook:
    """The process, and what the API server knows of it."""

    def __init__(self, cluster: Cluster) -> None:
        """Apply daemonset/webhook and write a configuration like its own; the account is the
        manifest's, with its rights and no others.
        """
        self.cluster = cluster
        self.directory, self.log = cluster.folder / "ca", cluster.folder / "webhook.log"
        self.port, self.telemetry_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        documents = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(ROOT / "daemonset" / "webhook"))))
        for document in documents:
            if document["kind"] == "MutatingWebhookConfiguration":
                for entry in document["webhooks"]:
                    path = entry["clientConfig"].pop("service")["path"]
                    entry["clientConfig"]["url"] = f"https://127.0.0.1:{self.port}{path}"
        if cluster.call("GET", f"/api/v1/namespaces/{NAMESPACE}")[0] == 404:
            cluster.ok("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))
        token = cluster.ok(
            "POST",
            f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token",
            {"spec": {"expirationSeconds": 3600}},
        )
        kubeconfig = cluster.write_kubeconfig("webhook", token["status"]["token"])
        config = yaml.safe_load((ROOT / "daemonset" / "webhook" / "webhook.yaml").read_text())
        config |= {
            "directory": str(self.directory),
            "names": ["127.0.0.1"],
            "address": "127.0.0.1",
            "port": self.port,
            "telemetryPort": self.telemetry_port,
        }
        pod = {
            "metadata": {"name": OWN_POD, "labels": {"sidecar.istio.io/inject": "false"}},
            "spec": {"serviceAccountName": ACCOUNT, "containers": [{"name": "webhook", "image": OWN_IMAGE}]},
        }
        cluster.ok("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        config["registration"]["kubeconfig"] = str(kubeconfig)
        config["kubernetes"]["kubeconfig"] = str(kubeconfig)
        self._config = cluster.folder / "webhook.yaml"
        self._config.write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Run it until it serves and the API server trusts it."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "nodeagent", "webhook", "-c", str(self._config)]
            own = {**os.environ, "POD_NAME": OWN_POD, "POD_NAMESPACE": NAMESPACE}
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=own
            )
        wait(lambda: self._ready() and self.trusted(), "the webhook's start")

    @property
    def running(self) -> bool:
        return self._process is not None

    def stop(self) -> int:
        """End it as the kubelet does; return its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._process = None

    def _ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return bool(self.get("/ready") == "ready\n")
        except OSError:
            return False

    def get(self, path: str) -> str:
        """Return what the plain port answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.telemetry_port}{path}", timeout=60) as response:
            text: str = response.read().decode()
            return text

    def roots(self) -> bytes:
        """Return the roots of the authority, PEM."""
        return (self.directory / "root-cert.pem").read_bytes()

    def registration(self) -> Any:
        return self.cluster.ok("GET", REGISTRATION)

    def bundles(self) -> set[bytes]:
        """Return the different caBundles of the registration, PEM."""
        return {
            base64.b64decode(entry["clientConfig"].get("caBundle", "")) for entry in self.registration()["webhooks"]
        }

    def trusted(self) -> bool:
        """Say whether the API server has been told the roots."""
        return self.bundles() == {self.roots()}

    def change(self, **fields: Any) -> None:
        """Change every webhook of the registration."""
        entries = [{"name": entry["name"], **fields} for entry in self.registration()["webhooks"]]
        self.cluster.ok("PATCH", REGISTRATION, {"webhooks": entries}, STRATEGIC)
