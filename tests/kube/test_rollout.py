"""``nodeagent install``, ``uninstall --cluster`` and ``check --cluster`` at a real API server, without
nodes and controllers: what they ask, what they change, and what they say when something is wrong.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cluster import Cluster, free_port
from tests.waiting import eventually

SYSTEM = "nodeagent-system"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def nodeagent(*arguments: str | Path, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nodeagent", *map(str, arguments)]
    if kubeconfig is not None:
        command += ["--kubeconfig", str(kubeconfig)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def definition(plural: str, kind: str, group: str = "nodeagent.io", version: str = "v1alpha1") -> Any:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


def labelled(kind: str, name: str, api_version: str = "v1", **rest: Any) -> Any:
    metadata = {"name": name, "labels": {"app.kubernetes.io/part-of": "nodeagent"}}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def agents() -> Any:
    metadata = {"name": "nodeagent", "namespace": SYSTEM}
    labels = {"app": "nodeagent"}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "agent", "image": "nodeagent"}]}},
    }
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Manifests with what matters of daemonset/: a definition, objects of the cluster and of a namespace."""
    path = tmp_path / "all.yaml"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    objects = [
        agents(),
        definition("ratelimits", "RateLimit"),
        labelled("Namespace", SYSTEM),
        labelled("ClusterRole", "nodeagent", "rbac.authorization.k8s.io/v1", rules=rules),
        labelled(
            "MutatingWebhookConfiguration", "nodeagent-sidecar-injector", "admissionregistration.k8s.io/v1", webhooks=[]
        ),
    ]
    path.write_text(yaml.safe_dump_all(objects))
    return path


@pytest.fixture(autouse=True)
def removed(cluster: Cluster) -> Iterator[None]:
    """Whatever a test installed goes: there is no controller that would take the namespace's objects."""
    yield
    for path in (
        f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/nodeagent",
        f"{DEFINITIONS}/ratelimits.nodeagent.io",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent",
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodeagent-sidecar-injector",
        "/api/v1/nodes/rollout-a",
    ):
        cluster.call("DELETE", path)
    eventually(lambda: cluster.call("GET", f"{DEFINITIONS}/ratelimits.nodeagent.io")[0] == 404, "the kind is gone", 60)


def test_install_applies_everything_and_again(cluster: Cluster, documents: Path) -> None:
    for _ in range(2):
        done = nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=cluster.kubeconfig)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert lines[0] == "CustomResourceDefinition ratelimits.nodeagent.io: applied"
        assert lines[-2].startswith("MutatingWebhookConfiguration")
    found = cluster.ok("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/nodeagent")
    assert {each["manager"] for each in found["metadata"]["managedFields"]} == {"nodeagent"}


def test_a_rollout_that_does_not_come_is_named(cluster: Cluster, documents: Path) -> None:
    done = nodeagent("install", "-f", documents, "--timeout", "1", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert f"DaemonSet {SYSTEM}/nodeagent: not after 1 s: 0 of 0 ready" in done.stderr


def test_dry_run_prints_and_asks_nobody(documents: Path) -> None:
    done = nodeagent("install", "-f", documents, "--dry-run", kubeconfig=Path("/nonexistent"))
    assert done.returncode == 0, done.stderr
    assert next(each["kind"] for each in yaml.safe_load_all(done.stdout)) == "CustomResourceDefinition"


def test_nothing_is_applied_where_a_kind_is_not_known(cluster: Cluster, documents: Path) -> None:
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "a", "namespace": "b"},
    }
    documents.write_text(documents.read_text() + "---\n" + yaml.safe_dump(monitor))
    done = nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert (
        "PodMonitor b/a: the cluster has no PodMonitor of monitoring.coreos.com/v1: install what brings it"
        in done.stderr
    )
    assert cluster.call("GET", f"{DEFINITIONS}/ratelimits.nodeagent.io")[0] == 404


def test_rights_that_are_missing_are_named_before_anything_is_applied(cluster: Cluster, documents: Path) -> None:
    if cluster.call("GET", "/api/v1/namespaces/nobody")[0] == 404:
        cluster.namespace("nobody")
    token = cluster.ok("POST", "/api/v1/namespaces/nobody/serviceaccounts/default/token", {"spec": {}})
    nobody = cluster.write_kubeconfig("nobody", token["status"]["token"])
    done = nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=nobody)
    assert done.returncode == 1
    assert "you may not create" in done.stderr and "clusterroles.rbac.authorization.k8s.io" in done.stderr
    assert f"daemonsets.apps in {SYSTEM}" in done.stderr
    assert cluster.call("GET", f"{DEFINITIONS}/ratelimits.nodeagent.io")[0] == 404


def test_fields_that_somebody_else_has_set_are_named(cluster: Cluster, documents: Path) -> None:
    assert nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=cluster.kubeconfig).returncode == 0
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent?fieldManager=somebody"
    cluster.ok("PATCH", path, {"rules": []}, "application/merge-patch+json")
    again = ("install", "-f", documents, "--timeout", "0")
    done = nodeagent(*again, kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert "ClusterRole nodeagent:" in done.stderr and "somebody" in done.stderr and "--force-conflicts" in done.stderr
    assert nodeagent(*again, "--force-conflicts", kubeconfig=cluster.kubeconfig).returncode == 0


@pytest.mark.parametrize("command", [("install",), ("uninstall", "--cluster"), ("check", "--cluster")])
def test_a_cluster_that_cannot_be_reached_is_one_line(
    cluster: Cluster, documents: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    more = ("-f", documents) if command[0] == "install" else ()
    absent = nodeagent(*command, *more, kubeconfig=tmp_path / "none")
    assert (absent.returncode, absent.stderr.count("\n")) == (1, 1)
    assert re.search(r": no such kubeconfig .*: give --kubeconfig, or set KUBECONFIG\n", absent.stderr)
    wrong = tmp_path / "wrong"
    wrong.write_text("{}")
    assert "is missing" in nodeagent(*command, *more, kubeconfig=wrong).stderr
    wrong.write_text(cluster.kubeconfig.read_text().replace(cluster.server, f"https://127.0.0.1:{free_port()}"))
    (tmp_path / "pki").symlink_to(cluster.folder / "pki")
    away = nodeagent(*command, *more, kubeconfig=wrong)
    assert away.returncode == 1
    assert "cannot connect" in away.stderr


def test_uninstall_refuses_to_lose_policies_that_people_wrote(cluster: Cluster, documents: Path) -> None:
    assert nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=cluster.kubeconfig).returncode == 0
    limit = {"apiVersion": "nodeagent.io/v1alpha1", "kind": "RateLimit", "metadata": {"name": "mine"}}
    path = "/apis/nodeagent.io/v1alpha1/namespaces/default/ratelimits"
    eventually(lambda: cluster.call("GET", path)[0] == 200, "the kind is served", 60)
    cluster.ok("POST", path, limit)
    done = nodeagent("uninstall", "--cluster", "--skip-nodes", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert "1 objects would be lost" in done.stderr and "RateLimit default/mine" in done.stderr
    registration = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodeagent-sidecar-injector"
    assert cluster.call("GET", registration)[0] == 200


def test_uninstall_refuses_while_pods_have_volumes_that_nobody_would_unmount(cluster: Cluster) -> None:
    """Input: a pod that runs and one that has ended, each with a volume of the agents' driver."""
    cluster.namespace("volumes")
    path = "/api/v1/namespaces/volumes/pods"
    volume = {"name": "api", "csi": {"driver": "csi.nodeagent.io", "readOnly": True}}
    for name in ("runs", "ended"):
        spec = {"containers": [{"name": "a", "image": "a"}], "volumes": [volume], "nodeName": "nowhere"}
        made = cluster.ok("POST", path, {"metadata": {"name": name}, "spec": spec})
        made["status"]["phase"] = {"runs": "Running", "ended": "Failed"}[name]
        cluster.ok("PUT", f"{path}/{name}/status", made)
    try:
        done = nodeagent("uninstall", "--cluster", "--skip-nodes", "--with-policies", kubeconfig=cluster.kubeconfig)
        assert done.returncode == 1
        assert "1 pods have volumes of csi.nodeagent.io (volumes/runs)" in done.stderr
    finally:
        cluster.kubectl("delete", "pod", "-n", "volumes", "runs", "ended", "--force", "--grace-period=0")


def test_uninstall_does_not_forget_nodes_whose_agents_are_gone(cluster: Cluster) -> None:
    done = nodeagent("uninstall", "--cluster", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert "nothing can clean the nodes" in done.stderr and "--skip-nodes" in done.stderr


def test_uninstall_has_nodes_cleaned_and_takes_marks_off(cluster: Cluster, documents: Path) -> None:
    """As far as it goes without controllers: the DaemonSet cleans, and is waited for."""
    assert nodeagent("install", "-f", documents, "--timeout", "0", kubeconfig=cluster.kubeconfig).returncode == 0
    done = nodeagent("uninstall", "--cluster", "--timeout", "1", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1
    assert "nodes that are cleaned: not after 1 s" in done.stderr
    found = cluster.ok("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/nodeagent")
    assert [each["name"] for each in found["spec"]["template"]["spec"]["initContainers"]] == ["uninstall"]


def test_check_says_what_a_cluster_lacks(cluster: Cluster) -> None:
    cluster.call("DELETE", f"/api/v1/namespaces/{SYSTEM}/configmaps/nodeagent-ca-root-cert")
    done = nodeagent("check", "--cluster", "-o", "json", kubeconfig=cluster.kubeconfig)
    assert done.returncode == 1, done.stderr
    rows = {(row["where"], row["feature"]): row for row in yaml.safe_load(done.stdout)}
    assert rows["cluster", "Kubernetes"]["state"] == "ok"
    assert rows["cluster", "NodeStatus"]["state"] == "missing"
    assert rows["cluster", "PeerAuthentication"]["state"] == "absent"
    assert "nodeagent-ca-root-cert is not there" in rows["cluster", "authority"]["detail"]
    assert rows["cluster", f"DaemonSet {SYSTEM}/nodeagent"]["detail"] == "it is not there"


def test_check_names_a_definition_that_is_too_old(cluster: Cluster) -> None:
    cluster.ok("POST", DEFINITIONS, definition("ratelimits", "RateLimit", version="v1alpha0"))
    done = nodeagent("check", "--cluster", "-o", "json", kubeconfig=cluster.kubeconfig)
    (row,) = [row for row in yaml.safe_load(done.stdout) if row["feature"] == "RateLimit"]
    assert row["state"] == "missing"
    assert "the cluster has v1alpha0 only; v1alpha1 is read: apply daemonset/base/crds" in row["detail"]


def test_check_names_a_namespace_in_which_no_agent_may_be(cluster: Cluster, tmp_path: Path) -> None:
    """Input: somebody has made it before, as ``restricted``. Verdict: each node says what is refused."""
    where = f"/api/v1/namespaces/{SYSTEM}"
    if cluster.call("GET", where)[0] == 404:
        cluster.namespace(SYSTEM)
    level = "pod-security.kubernetes.io/enforce"
    cluster.kubectl("label", "--overwrite", "namespace", SYSTEM, f"{level}=restricted")
    cluster.call("POST", f"{where}/serviceaccounts", {"metadata": {"name": "default"}})
    cluster.ok("POST", "/api/v1/nodes", {"metadata": {"name": "rollout-a"}})
    documents = tmp_path / "agents.yaml"
    documents.write_text(yaml.safe_dump(agents()))
    try:
        done = nodeagent("check", "--cluster", "-f", documents, "-o", "json", kubeconfig=cluster.kubeconfig)
    finally:
        cluster.kubectl("label", "namespace", SYSTEM, f"{level}-")
    (row,) = [row for row in yaml.safe_load(done.stdout) if row["where"] == "rollout-a"]
    assert row["state"] == "missing"
    assert 'violates PodSecurity "restricted:latest"' in row["detail"], row


def test_check_names_the_rule_that_the_agents_lack(cluster: Cluster) -> None:
    done = nodeagent("check", "--cluster", "-o", "json", kubeconfig=cluster.kubeconfig)
    rights = [row["detail"] for row in yaml.safe_load(done.stdout) if row["feature"] == "agents' rights"]
    assert any(
        words.startswith('{apiGroups: [""], resources: [pods], verbs: [list, watch]}: add it') for words in rights
    )
