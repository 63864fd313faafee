"""A real kubelet takes the agent's driver, and a pod finds its own socket in a volume of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nodeagent.lab.kube import Kube
from tests.kube.agents import agents
from tests.kube.workloads import client
from tests.waiting import eventually

DRIVER = Path(__file__).parents[2] / "daemonset" / "base" / "csi.yaml"
VOLUME = {"name": "api", "csi": {"driver": "csi.nodeagent.io", "readOnly": True}}


@pytest.mark.parametrize("node", ["node-b"])
def test_a_pod_finds_its_socket_in_its_volume_before_it_runs(kube: Kube, node: str) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "volumes"}}
    pod = client("volumes", node)
    pod["spec"]["volumes"] = [VOLUME]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "api", "mountPath": "/run/api", "readOnly": True}]
    with agents(kube):
        kube.kubectl("apply", "-f", str(DRIVER))
        try:
            eventually(lambda: "csi.nodeagent.io" in kube.kubectl("get", "csinode", node, "-o", "yaml"), "taken", 60)
            kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([namespace, pod]))
            kube.kubectl("wait", "-n", "volumes", "--for=condition=Ready", f"pod/client-{node}", "--timeout=90s")
            look = ("exec", "-n", "volumes", f"client-{node}", "--", "ls", "/run/api")
            eventually(lambda: kube.kubectl(*look) == "socket\n", "the socket is there", 60)
            kube.kubectl("delete", "namespace", "volumes", "--timeout=60s")  # its volume goes first
        finally:
            kube.kubectl("delete", "namespace", "volumes", "--ignore-not-found", "--wait=false")
            kube.kubectl("delete", "-f", str(DRIVER))
