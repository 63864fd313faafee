"""What is decided without a cluster: orders, templates, marks, words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ConfigError
from nodeagent.rollout import manifests
from nodeagent.rollout.check import said
from nodeagent.rollout.connectivity import POLICIES, attempts, findings, servers
from nodeagent.rollout.on_nodes import Told, alone
from nodeagent.rollout.remove import cleaning, unmarked
from nodeagent.rollout.workloads import unready


def daemon_set() -> Any:
    agent = {
        "name": "agent", "image": "nodeagent:1", "imagePullPolicy": "Never", "args": ["run"],
        "readinessProbe": {"exec": {}}, "lifecycle": {}, "ports": [{"containerPort": 1}], "resources": {"limits": {}},
        "volumeMounts": [{"name": "bpf", "mountPath": "/sys/fs/bpf"}], "securityContext": {"runAsUser": 0},
    }  # fmt: skip
    spec = {
        "hostNetwork": True, "priorityClassName": "system-node-critical", "initContainers": [{"name": "compile"}],
        "containers": [{"name": "log"}, agent],
    }  # fmt: skip
    return {"kind": "DaemonSet", "spec": {"template": {"metadata": {"labels": {"app": "a"}}, "spec": spec}}}


def test_what_others_need_comes_first_and_what_holds_pods_up_last() -> None:
    kinds = ["MutatingWebhookConfiguration", "DaemonSet", "PodMonitor", "Service", "Namespace", "ClusterRole"]
    kinds += ["CustomResourceDefinition"]
    found = [each["kind"] for each in manifests.ordered([{"kind": kind} for kind in kinds])]
    assert found == [
        "CustomResourceDefinition", "Namespace", "ClusterRole", "Service", "PodMonitor", "DaemonSet",
        "MutatingWebhookConfiguration",
    ]  # fmt: skip


def test_lists_are_taken_apart_and_a_document_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text("kind: List\nitems: [{kind: A, metadata: {name: a}}]\n---\n---\n{kind: B, metadata: {name: b}}\n")
    assert [each["kind"] for each in manifests.load(path)] == ["A", "B"]
    path.write_text("kind: A\n")
    with pytest.raises(ConfigError, match=r"without kind and metadata\.name"):
        manifests.load(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no objects"):
        manifests.load(path)


def test_an_overlay_that_is_none_is_named_with_those_that_are(monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(ConfigError, match="overlay nowhere: neither daemonset/overlays/nowhere nor a path"):
        manifests.overlay("nowhere")


def test_an_overlay_needs_no_checkout_around(monkeypatch: Any, tmp_path: Path) -> None:
    """What came with the package is meant; a checkout's around, or a path, goes before it."""
    monkeypatch.chdir(tmp_path)
    found = manifests.overlay("minimal")
    assert (found / "kustomization.yaml").is_file()
    assert found.is_absolute()
    (tmp_path / "daemonset/overlays/minimal").mkdir(parents=True)
    assert manifests.overlay("minimal") == Path("daemonset/overlays/minimal")
    with pytest.raises(ConfigError, match=r"overlay nowhere: .* there are: .*minimal"):
        manifests.overlay("nowhere")


def test_without_kubectl_the_way_around_is_named(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"kubectl kustomize FOLDER \| nodeagent install -f -"):
        manifests.load(tmp_path)


def test_a_command_on_a_node_has_the_agents_mounts_and_rights_and_nothing_that_watches_it() -> None:
    spec = alone(daemon_set()["spec"]["template"], ["nodeagent", "check"])
    (container,) = spec["containers"]
    assert container["command"] == ["nodeagent", "check"]
    assert {"name", "image", "imagePullPolicy", "volumeMounts", "securityContext", "command"} == set(container)
    assert (spec["hostNetwork"], spec["restartPolicy"]) == (True, "Never")
    assert "initContainers" not in spec
    assert "priorityClassName" not in spec, "on a full node the kubelet would end another pod for it"


def test_what_cleans_a_node_is_the_same_daemon_set_with_another_command() -> None:
    before = daemon_set()
    made = cleaning(before)
    spec = made["spec"]["template"]["spec"]
    (first,) = spec["initContainers"]
    assert (first["name"], first["command"][:2]) == ("uninstall", ["nodeagent", "uninstall"])
    assert first["volumeMounts"] == [{"name": "bpf", "mountPath": "/sys/fs/bpf"}]
    assert [each["command"] for each in spec["containers"]] == [["sleep", "infinity"]]
    assert made["spec"]["template"]["metadata"] == before["spec"]["template"]["metadata"]
    assert before == daemon_set()


def test_only_the_agents_marks_are_taken_off_a_node() -> None:
    node = {
        "metadata": {
            "name": "a", "resourceVersion": "7", "labels": {"kubernetes.io/os": "linux", "nodeagent.io/x": "y"},
            "annotations": {"other": "1"},
        },
        "spec": {"taints": [{"key": "nodeagent.io/agent-not-ready", "effect": "NoSchedule"}, {"key": "mine"}]},
    }  # fmt: skip
    assert unmarked(node) == {
        "metadata": {"labels": {"nodeagent.io/x": None}, "resourceVersion": "7"},
        "spec": {"taints": [{"key": "mine"}]},
    }
    assert unmarked({"metadata": {"name": "b"}, "spec": {}}) == {}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"conditions": [{"type": "Ready", "status": "True"}]}, ""),
        ({"phase": "Running"}, "Running, not ready on n"),
        (
            {"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]},
            "a ErrImagePull: no on n",
        ),
        (
            {"initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]},
            "i ended with 3 on n",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]},
            "not scheduled: 0/2 nodes",
        ),
        ({"phase": "Failed", "reason": "OutOfpods", "message": "no room"}, "OutOfpods: no room on n"),
    ],
)  # fmt: skip
def test_why_a_pod_is_not_ready(status: Any, words: str) -> None:
    assert unready({"spec": {"nodeName": "n"}, "status": status}) == words


def test_what_a_node_says_is_shown_as_far_as_it_is_not_well() -> None:
    rows = [
        {"feature": "bpffs", "state": "ok", "detail": "d", "lost": ""},
        {"feature": "memfd", "state": "absent", "detail": "not found", "lost": "keys"},
        {"feature": "wrk", "state": "absent", "detail": "not found", "lost": "no benchmark"},
    ]
    found = said(Told("node-a", 0, json.dumps(rows)))
    assert [(each.where, each.feature, each.state) for each in found] == [
        ("node-a", "memfd", "absent"),
        ("node-a", "preflight", "ok"),
    ]
    (broken,) = said(Told("node-b", None, "not after 1 s: agent ImagePullBackOff: no"))
    assert (broken.state, broken.detail) == ("missing", "not after 1 s: agent ImagePullBackOff: no")
    (unpulled,) = said(Told("node-b", None, f"not after 1 s: agent ErrImagePull: {'x' * 400}"))
    assert unpulled.detail.startswith("not after 1 s: agent ErrImagePull")
    (silent,) = said(Told("node-c", 137, ""))
    assert silent.detail == "no answer, exit status 137"


def test_every_path_is_tried_that_the_cluster_can_have() -> None:
    whole = [each.what for each in attempts(["a", "b"], ["PeerAuthentication", "AuthorizationPolicy"])]
    assert len(whole) == len(set(whole)) == 7
    assert [each.what for each in attempts(["a"], [])] == ["same node", "Service", "from outside of the mesh"]
    assert [each.name for each in servers(["a", "b"])] == ["near", "strict", "denied", "far"]
    assert [each.name for each in servers(["a"])] == ["near", "strict", "denied"]


def test_policies_of_the_whole_mesh_decide_nothing_of_the_test() -> None:
    """A mesh may be STRICT, or allow nothing, as a whole: the test's namespace says otherwise of all its pods."""
    assert POLICIES["PeerAuthentication"]["default"] == {"mtls": {"mode": "PERMISSIVE"}}
    everything = [spec for spec in POLICIES["AuthorizationPolicy"].values() if "selector" not in spec]
    assert everything == [{"action": "ALLOW", "rules": [{}]}]


def test_what_a_client_did_not_come_to_is_told_with_its_last_words() -> None:
    tried = list(attempts(["a"], []))[:2]
    lines = '{"number": 0, "good": false, "heard": "503"}\nTraceback: no\n'
    first, second = findings(tried, lines)
    assert (first.state, first.detail) == ("missing", "503, and not 200")
    assert second.detail.startswith("the test's pod did not get there") and "Traceback" in second.detail
