"""NetworkPolicies, as nodes of a real cluster enforce them by the lab's rules: its CNI plugins enforce none."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from nodeagent.lab.kube import Kube
from nodeagent.lab.network_policies import Cluster, ruleset
from tests.kube.mesh import apply, get
from tests.kube.workloads import Document


def network_policy(name: str, where: str, spec: Document) -> Document:
    """Return a NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": where},
        "spec": spec,
    }


@contextmanager
def enforced(kube: Kube, *policies: Document) -> Iterator[None]:
    """Within, *policies* are in the cluster, and every node enforces them, for the pods that were there before."""
    apply(kube, *policies)
    try:
        _enforce(kube)
        yield
    finally:
        for each in policies:
            kube.kubectl("delete", "networkpolicy", "-n", each["metadata"]["namespace"], each["metadata"]["name"])
        _enforce(kube)


def _enforce(kube: Kube) -> None:
    """Have every node enforce what there is; a plugin would follow it."""
    policies, pods, namespaces = (get(kube, kind, "-A")["items"] for kind in ("networkpolicies", "pods", "namespaces"))
    cluster = Cluster.of((pod for pod in pods if pod["status"].get("podIPs")), namespaces)
    for own in kube.nodes:
        rules = ruleset(policies, cluster, own.name)
        subprocess.run(kube.command(own.name, ["nft", "-f", "-"]), input=rules, text=True, check=True)
