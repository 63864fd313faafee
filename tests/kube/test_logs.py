"""Logs on a real cluster, where the kubelet and the container runtime write and rotate them: whatever pods
write arrives, with whose it is, also while the agents are replaced.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.config import STATIC_PODS
from nodeagent.uninstall import KEPT
from tests.kube.logs import Records, read_logs, search
from tests.kube.mesh import (
    SECONDS,
    agent_pods,
    agents,
    alone,
    apply,
    enrolled,
    get,
    in_agent,
    install,
    namespace,
    nodeagent,
    ready,
    says,
    taken_over,
)
from tests.kube.workloads import Document, container
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents
NAMESPACE = "logged"
NUMBERS = """
import itertools, time
for number in itertools.count(1):
    print(number, flush=True)
    time.sleep(0.02)
"""
LOUD = """
import itertools, time
for number in itertools.count(1):
    print(f"{number} " + "x" * 1000, flush=True)
    time.sleep(0 if number <= 12_000 else 0.1)
"""
"""More than the 10 MiB at which kubelets rotate."""
LIVES = "echo >> /kept/lives; echo life $(wc -l < /kept/lives); [ $(wc -l < /kept/lives) = 2 ] && exec sleep infinity"
PRIVATE = "umask 077; i=0; while :; do i=$((i+1)); echo private $i >> /var/log/app/own.log; sleep 0.5; done"
USER = 12345


def pod(name: str, node: str, *command: str, annotations: dict[str, str] | None = None, **more: object) -> Document:
    """Return a pod of one container; *more*: fields of the container, and the pod's ``volumes``."""
    volumes = more.pop("volumes", [])
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "containers": [container(*command, **more)],
        "volumes": volumes,
    }
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def lives() -> Document:
    """Return a pod whose container ends once, and is started again."""
    mount = [{"name": "kept", "mountPath": "/kept"}]
    return pod("lives", "node-a", "sh", "-c", LIVES, volumeMounts=mount, volumes=[{"name": "kept", "emptyDir": {}}])


def private() -> Document:
    """Return a Deployment in the mesh, whose pods write a file that is their own user's alone; what is asked for
    stands in its pods' template.
    """
    made = pod("private", "node-b", "sh", "-c", PRIVATE, volumeMounts=[{"name": "varlog", "mountPath": "/var/log/app"}])
    made["spec"]["volumes"] = [{"name": "varlog", "emptyDir": {}}]
    made["spec"]["securityContext"] = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    labels = {"app": "private", "nodeagent.io/dataplane": "enabled"}
    template = {
        "metadata": {"labels": labels, "annotations": {"nodeagent.io/log-files": "varlog/*.log"}},
        "spec": made["spec"],
    }
    spec = {"selector": {"matchLabels": {"app": "private"}}, "template": template}
    metadata = {"name": "private", "namespace": NAMESPACE}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def hostile() -> Document:
    """Return a pod that asks for what is not its own."""
    asked = {"nodeagent.io/log-files": "../../../etc/*, secrets/*", "nodeagent.io/log-parser": "nobodys"}
    return pod("hostile", "node-a", "sh", "-c", "echo still read; exec sleep infinity", annotations=asked)


@pytest.fixture(scope="module")
def records(mesh: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    """The agents read logs, which arrive here."""
    with search(mesh) as found:
        try:
            read_logs(mesh, tmp_path_factory.mktemp("manifests"))
            yield found
        finally:
            install(mesh)


@pytest.fixture(scope="module")
def logged(mesh: Kube, records: Records) -> Iterator[Kube]:
    pods = [
        pod("numbers", "node-a", "python3", "-c", NUMBERS),
        pod("loud", "node-b", "python3", "-c", LOUD),
        lives(),
        private(),
        hostile(),
    ]
    apply(mesh, namespace(NAMESPACE), *pods)
    ready(mesh, NAMESPACE)
    yield mesh
    mesh.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def arrive(records: Records, name: str, least: int = 1) -> list[Document]:
    """Wait until *least* records of the namespace's pod *name* are there; return all of them."""

    def enough() -> list[Document]:
        found = records.of(f"{NAMESPACE}/{name}")
        assert len(found) >= least, f"{len(found)} records of {name}"
        return found

    return eventually(enough, f"{least} records of {name}", SECONDS)


def whole(records: Records, name: str, least: int) -> None:
    """Wait until the first numbers in the records of the pod *name* are 1, 2, … up to *least* or more, each once;
    in whatever order: requests are under way side by side.
    """

    def all_there() -> bool:
        found = [int(re.findall(r"\d+", each["log"])[0]) for each in arrive(records, name, least)]
        missing = set(range(1, max(found) + 1)) - set(found)
        assert not missing, f"{len(missing)} missing of {max(found)}: {sorted(missing)[:10]}"
        return len(set(found)) == len(found)

    eventually(all_there, f"{least} records of {name}, none missing", SECONDS)


def in_pod_logs(kube: Kube, node: str, uid: str) -> list[str]:
    """Return the names that the kubelet has for the output of a pod's container."""
    look = ["sh", "-c", f"ls /var/log/pods/*_{uid}/app"]
    return subprocess.run(kube.command(node, look), capture_output=True, text=True, check=True).stdout.split()


def uid_of(kube: Kube, name: str) -> str:
    return str(get(kube, "pod", "-n", NAMESPACE, name)["metadata"]["uid"])


def refusals(kube: Kube, node: str, name: str) -> list[str]:
    """Return what *node*'s agent does not read of the pod *name*, in its words."""
    rows = json.loads(in_agent(kube, node, "nodeagent", "get", "logs", "-o", "json"))
    return [each["why"] for each in rows if each.get("pod") == name and each["state"] == "refused"]


def test_output_arrives_as_kubectl_shows_it(logged: Kube, records: Records) -> None:
    """Verdict: every line, once, with whose it is; kubectl has the same lines as ever."""
    whole(records, "numbers", 100)
    found = arrive(records, "numbers", 100)
    assert found[0]["stream"] == "stdout"
    assert found[0]["kubernetes"] == {
        "namespace_name": NAMESPACE,
        "pod_name": "numbers",
        "pod_id": uid_of(logged, "numbers"),
        "container_name": "app",
        "host": "node-a",
        "labels": {"app": "numbers"},
    }
    shown = logged.kubectl("logs", "-n", NAMESPACE, "numbers").split()
    assert shown == [str(number) for number in range(1, len(shown) + 1)]
    own = in_agent(logged, "node-a", "nodeagent", "logs", f"{NAMESPACE}/numbers", "--since", "1h")
    assert all(number in own.split() for number in shown[:100])


def test_a_container_that_was_started_again_is_read_on(logged: Kube, records: Records) -> None:
    """Verdict: what both of its lives wrote, which the kubelet has in files of their own."""
    arrive(records, "lives", 2)
    assert sorted(records.texts(f"{NAMESPACE}/lives")) == ["life 1", "life 2"]
    eventually(lambda: "1.log" in in_pod_logs(logged, "node-a", uid_of(logged, "lives")), "the second file")


def test_what_the_kubelet_rotates_is_read_whole(logged: Kube, records: Records) -> None:
    """Verdict: the kubelet has rotated a container's file, and no line before or behind that is missing."""
    uid = uid_of(logged, "loud")
    rotated = lambda: [each for each in in_pod_logs(logged, "node-b", uid) if re.match(r"0\.log\.\d", each)]  # noqa: E731
    eventually(rotated, "the kubelet rotates", SECONDS)
    whole(records, "loud", max(len(records.of(f"{NAMESPACE}/loud")) + 20, 12_020))


def test_a_file_by_the_annotation_of_a_deployment(logged: Kube, records: Records) -> None:
    """Input: pods in the mesh write a file in an emptyDir that only their own user may read."""
    [name] = [each["metadata"]["name"] for each in get(logged, "pods", "-n", NAMESPACE, "-l", "app=private")["items"]]
    enrolled(logged, "node-b", f"{NAMESPACE}/{name}")
    whole(records, name, 3)
    found = arrive(records, name, 3)
    assert {each["log_file"] for each in found} == {"varlog/own.log"}
    assert found[0]["kubernetes"]["labels"]["app"] == "private"


def test_what_is_not_a_pods_own_is_refused_where_people_look(logged: Kube, records: Records) -> None:
    """Verdict: an Event of the pod, and ``get logs``, say what is refused; the pod's output is read all the same."""
    assert arrive(records, "hostile")[0]["log"] == "still read"

    def told() -> str:
        found = get(logged, "events.events.k8s.io", "-n", NAMESPACE)["items"]
        own = [each["note"] for each in found if each["regarding"]["name"] == "hostile"]
        notes = [each for each in own if "its logs" in each]
        assert notes, found
        return " ".join(notes)

    note = eventually(told, "an Event", SECONDS)
    why = refusals(logged, "node-a", "hostile")
    for wrong in ("../../../etc/*", "secrets", "nobodys"):
        assert wrong in note
        assert any(wrong in each for each in why), why
    assert not any("root:" in each for contents in list(records.contents.values()) for each in contents)


def test_a_static_pod(logged: Kube, records: Records) -> None:
    """Input: a pod that the kubelet has from a file: its folder has a uid that the API does not know.
    Verdict: its output arrives with the name and uid by which the API knows it.
    """
    manifest = pod("static", "", "sh", "-c", "echo from a file; exec sleep infinity")
    del manifest["spec"]["nodeName"]
    path = STATIC_PODS / "static.yaml"
    put = logged.command("node-b", ["sh", "-c", f"mkdir -p {STATIC_PODS}; cat > {path}.new; mv {path}.new {path}"])
    subprocess.run(put, input=yaml.safe_dump(manifest), text=True, check=True)
    try:
        [found] = arrive(records, "static-node-b")
        assert found["log"] == "from a file"
        assert found["kubernetes"]["pod_id"] == uid_of(logged, "static-node-b")
        look = logged.command("node-b", ["ls", "/var/log/pods"])
        folders = subprocess.run(look, capture_output=True, text=True, check=True).stdout.split()
        [folder] = [each for each in folders if each.startswith(f"{NAMESPACE}_static-node-b_")]
        assert not folder.endswith(uid_of(logged, "static-node-b"))
    finally:
        subprocess.run(logged.command("node-b", ["rm", "-f", str(path)]), check=True)


def test_agents_are_replaced_and_no_line_is_missing(logged: Kube, records: Records, tmp_path: Path) -> None:
    """Input: a pod counts; the agents are replaced by others that lack a right, and these again by others.
    Verdict: no number is missing, and none has two contents; what is lost without the right is named.
    """
    [name] = [each["metadata"]["name"] for each in get(logged, "pods", "-n", NAMESPACE, "-l", "app=private")["items"]]
    for without in (("DAC_READ_SEARCH",), ()):
        before = agent_pods(logged)
        read_logs(logged, tmp_path, without)
        eventually(lambda old=before: taken_over(logged, old), "every agent is another one", SECONDS)
        said = eventually(lambda: says(logged, "node-b"), "the agent answers", SECONDS)
        assert ("CAP_DAC_READ_SEARCH is missing" in said) == bool(without), said
        if without:
            eventually(lambda: refusals(logged, "node-b", name), "the file that is its user's alone is named", SECONDS)
        arrive(records, "numbers", len(records.of(f"{NAMESPACE}/numbers")) + 100)
    for each in ("numbers", name):
        whole(records, each, len(records.of(f"{NAMESPACE}/{each}")) + 3)
    assert records.torn() == []
    eventually(lambda: alone(logged), "the old agents have ended", SECONDS)
    assert sorted(agents(logged)) == ["node-a", "node-b"]


def test_uninstalling_leaves_nothing_but_what_nobody_else_has(logged: Kube, records: Records, commands: Path) -> None:
    """Verdict: it gets to its end though the collector's folder is another user's, and a mount, and is empty then; of
    the node where it is not, it says what stays.
    """
    kept = "/var/lib/nodeagent/logs/sinks/all.jsonl"
    write = ["sh", "-c", f"mkdir -p {Path(kept).parent} && echo record > {kept}"]
    subprocess.run(logged.command("node-a", write), check=True)
    look = ["find", "/var/lib/nodeagent/logs", "-mindepth", "1"]
    before = subprocess.run(logged.command("node-a", look), capture_output=True, text=True, check=True).stdout
    assert "/var/lib/nodeagent/logs/positions" in before
    removed = nodeagent(logged, commands, "uninstall", "--cluster")
    assert removed.returncode == 0, removed.stderr
    said = [line for line in (removed.stdout + removed.stderr).splitlines() if KEPT in line]
    assert said == [f"Node node-a: {KEPT}{kept}"]
    for node, stays in (("node-a", [str(Path(kept).parent), kept]), ("node-b", [])):
        left = subprocess.run(logged.command(node, look), capture_output=True, text=True, check=True).stdout
        assert left.split() == stays
