"""``nodeagent install``, ``check --cluster --connectivity`` and ``uninstall --cluster`` on a cluster with
nodes: what they say, and that afterwards it is as it was, wherever one looks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import __version__
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.config import CONTAINERD
from tests.kube.cluster import ROOT
from tests.kube.mesh import (
    SECONDS,
    SYSTEM,
    agent_pods,
    agents,
    apply,
    curl,
    enrolled,
    get,
    in_agent,
    load,
    namespace,
    nodeagent,
    policy,
    ready,
    rolled_out,
)
from tests.kube.workloads import client, nginx
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for the cluster
NODES = ("node-a", "node-b")
OVERLAYS = ROOT / "daemonset" / "overlays"
IMAGE = f"docker.io/library/nodeagent:{__version__}"
OWN_IMAGE = "registry.example/mesh/nodeagent:own"
MARK = "nodeagent.io/agent-not-ready"
CRIO = Path("/run/crio/crio.sock")
TRIED = {
    "client": {"same node", "other node", "Service", "STRICT, with mTLS", "denied by an AuthorizationPolicy"},
    "outsider": {"from outside of the mesh", "STRICT, from outside of the mesh"},
}
"""What ``--connectivity`` tries, by who asks."""
FOLDERS = ("/run/nodeagent", "/var/lib/kubelet/plugins", "/var/lib/kubelet/plugins_registry")
LOOK = f"""
import json, os, subprocess
from pathlib import Path
from nodeagent.redirect import hooks, syscall
FOLDERS = {FOLDERS!r}
def attached(paths, kinds):
    found = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        found += [(hook.name, str(path)) for hook in kinds if syscall.program_query(fd, hook.attach_type)[0]]
        os.close(fd)
    return found
def listening(netns):
    shown = subprocess.run(["nsenter", f"--net={{netns}}", "ss", "-Hltn"], capture_output=True, text=True, check=True)
    return sorted(f"{{netns.name}} {{line.split()[3]}}" for line in shown.stdout.splitlines())
pods = sorted(Path("/run/netns").iterdir())
groups = [path for path in Path("/sys/fs/cgroup/unified").rglob("*") if path.is_dir()]
print(json.dumps({{
    "programs": attached(groups, (*hooks.CGROUP_HOOKS, hooks.HTTP_EGRESS)) + attached(pods, (hooks.LOOKUP,)),
    "listeners": [each for netns in pods for each in listening(netns)],
    "pins": sorted(str(path) for path in Path("/sys/fs/bpf").rglob("*")),
    "files": sorted(str(path) for folder in FOLDERS for path in Path(folder).rglob("*") if not path.is_dir()),
}}))
"""
"""Prints what an agent leaves on a node while it runs: programs where they are attached, listeners
inside pods, pins and other files.
"""


@pytest.fixture(scope="module")
def home(kube: Kube) -> Iterator[Kube]:
    """The agent's image on the nodes, Istio's kinds, and pods that ask to be in the mesh: STRICT ones."""
    load(kube)
    kube.kubectl("apply", "-k", str(ROOT / "daemonset" / "overlays" / "crds"))
    kube.kubectl("wait", "--for=condition=Available", "apiservice", "v1.security.istio.io", "--timeout=60s")
    pods = []
    for node in NODES:
        pod = client("home", node, name=f"server-{node}")
        pod["spec"]["containers"] = [nginx()]
        pods.append(pod)
    strict = policy("PeerAuthentication", "default", "home", {"mtls": {"mode": "STRICT"}})
    apply(kube, namespace("home", **{"nodeagent.io/dataplane": "enabled"}), strict, *pods)
    apply(kube, client("home", "node-a"), client("default", "node-a", name="visitor"))
    ready(kube, "home")
    ready(kube, "default", "visitor")
    yield kube
    kube.kubectl("delete", "namespace", "home", "--wait=false")
    kube.kubectl("delete", "pod", "visitor", "--wait=false")


def findings(said: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], Any]:
    """Return the rows of ``check``, by where and what."""
    return {(row["where"], row["feature"]): row for row in json.loads(said.stdout)}


def traces(kube: Kube) -> dict[str, Any]:
    """Return what an agent changes: on each node, at Node objects, and which objects of the cluster there are."""
    found: dict[str, Any] = {}
    for node in NODES:
        look = kube.command(node, [sys.executable, "-c", LOOK])
        found[node] = json.loads(subprocess.run(look, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    for each in get(kube, "nodes")["items"]:
        marks = {**each["metadata"]["labels"], **each["metadata"]["annotations"]}
        taints = each["spec"].get("taints", [])
        found[f"marks of {each['metadata']['name']}"] = [sorted(marks), [taint["key"] for taint in taints]]
    kinds = kube.kubectl("api-resources", "--namespaced=false", "--verbs=list", "-o", "name").split()
    found["objects"] = set(kube.kubectl("get", ",".join(kinds), "-o", "name").split())
    return found


def as_it_was(kube: Kube, before: dict[str, Any]) -> None:
    """Wait until the traces are those of *before*; what nodes and controllers do takes its time."""

    def same() -> bool:
        now = traces(kube)
        other = {key: (before[key], now[key]) for key in before if now[key] != before[key]}
        assert not other, other
        return True

    eventually(same, "nothing is left", SECONDS)


def host(kube: Kube, node: str) -> str:
    return str(get(kube, "pod", "-n", "home", f"server-{node}")["status"]["podIP"])


@pytest.fixture
def wrong_overlay(tmp_path: Path) -> Path:
    """An overlay whose agent.yaml no agent would start with."""
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAYS / "minimal", tmp_path)],
        "configMapGenerator": [{"name": "nodeagent", "behavior": "replace", "files": ["agent.yaml"]}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(document))
    settings = yaml.safe_load((ROOT / "daemonset" / "base" / "agent.yaml").read_text())
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(settings | {"unheardOf": 1}))
    return tmp_path


def test_from_nothing_to_a_mesh_and_back_to_nothing(home: Kube, commands: Path, wrong_overlay: Path) -> None:
    """Verdict: the preflight says yes and leaves nothing; the installation is waited for; everything is
    well, on every path, in a mesh that is STRICT and allows nothing as a whole; an agent.yaml that is wrong is seen
    before it is applied; STRICT pods are protected meanwhile, and open again afterwards; programs, pins, listeners,
    files, marks, kinds and objects are then those of before.
    """
    before = traces(home)
    first = nodeagent(home, commands, "check", "--cluster", "--overlay", "minimal", "-o", "json")
    assert first.returncode == 0, first.stdout + first.stderr
    as_it_was(home, before)

    home.kubectl("taint", "--overwrite", "node", "node-b", f"{MARK}=:NoSchedule")
    installed = nodeagent(home, commands, "install")
    assert installed.returncode == 0, installed.stderr
    assert set(agents(home)) == set(NODES)
    enrolled(home, "node-a", "home/client-node-a", "home/server-node-a")
    enrolled(home, "node-b", "home/server-node-b")
    eventually(lambda: "taints" not in get(home, "node", "node-b")["spec"], "the startup taint is off", SECONDS)

    now = traces(home)
    for node in NODES:
        assert all(now[node][what] != before[node][what] for what in before[node]), "what is looked for is found"

    whole = [policy("PeerAuthentication", "default", "istio-system", {"mtls": {"mode": "STRICT"}})]
    whole += [policy("AuthorizationPolicy", "nothing", "istio-system", {})]
    apply(home, namespace("istio-system"), *whole)
    checked = nodeagent(home, commands, "check", "--cluster", "--connectivity", "-o", "json")
    home.kubectl("delete", "namespace", "istio-system", f"--timeout={SECONDS:g}s", seconds=SECONDS)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rows = findings(checked)
    for who, tried in TRIED.items():
        assert {what for where, what in rows if where == who} == tried
    assert {row["state"] for row in rows.values()} <= {"ok", "absent"}
    left = [each["metadata"] for each in get(home, "namespaces")["items"] if "check" in each["metadata"]["name"]]
    assert all("deletionTimestamp" in each for each in left), "the test's namespace is removed"
    for node in NODES:
        assert curl(home, "home/client-node-a", host(home, node)).stdout == "200"
        assert curl(home, "default/visitor", host(home, node)).returncode == 56

    maps = get(home, "configmaps", "-n", SYSTEM)["items"]
    refused = nodeagent(home, commands, "check", "--cluster", "--overlay", str(wrong_overlay), "-o", "json")
    assert refused.returncode == 1
    assert all("unheardOf" in findings(refused)[node, "preflight"]["detail"] for node in NODES), refused.stdout
    assert [each["metadata"]["name"] for each in get(home, "configmaps", "-n", SYSTEM)["items"]] == [
        each["metadata"]["name"] for each in maps
    ]

    home.kubectl("label", "node", "node-a", "nodeagent.io/by-hand=yes")
    removed = nodeagent(home, commands, "uninstall", "--cluster")
    assert removed.returncode == 0, removed.stderr
    assert removed.stderr.endswith("nothing of the agent is left in the cluster\n")
    for node in NODES:
        for pod in ("home/client-node-a", "default/visitor"):
            assert curl(home, pod, host(home, node)).stdout == "200"
    as_it_was(home, before)


@pytest.fixture
def own_overlay(home: Kube, tmp_path: Path) -> Path:
    """An overlay of somebody's own over ``crio``: the image has another name, and logs may be read. Nodes have their
    runtime's socket where CRI-O has it, too, as the same file: a container sees no other folder's by a symbolic link.
    """
    name, _, tag = OWN_IMAGE.rpartition(":")
    tagging = ("ctr", "-a", str(CONTAINERD), "-n", "k8s.io", "images", "tag", "--force", IMAGE, OWN_IMAGE)
    linking = ("sh", "-c", f"mkdir -p {CRIO.parent} && ln -f {CONTAINERD} {CRIO}")
    for node in NODES:
        for command in (tagging, linking):
            subprocess.run(home.command(node, command), check=True, capture_output=True)
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAYS / "crio", tmp_path)],
        "components": [os.path.relpath(ROOT / "daemonset" / "components" / "logs", tmp_path)],
        "images": [{"name": "nodeagent", "newName": name, "newTag": tag}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


def test_by_kubectl_alone_nothing_is_left_either(home: Kube, own_overlay: Path) -> None:
    """Input: manifests of somebody's own that are applied, by the server, and deleted, the nodes' cleaning between, as
    the documents say; on a node are positions of logs. There is no CRI-O here: containerd answers where that one
    listens, and of containerd's own folder, by which pods are known early, the agents see nothing. So this shows that
    the overlay's mounts are what the agent looks for, and that it goes by what the runtime lists; CRI-O's own answers
    are tried in ``tests/netns/test_runtime.py``. Verdict: pods that are there and one that comes are in the mesh;
    then as above, and nodes were cleaned by the own image.
    """
    before = traces(home)
    home.kubectl("apply", "--server-side", "-k", str(own_overlay))
    rolled_out(home)
    for node in NODES:
        enrolled(home, node, f"home/server-{node}")
        seen = in_agent(home, node, "sh", "-c", f"test -S {CRIO}; echo $?; ls /run").split()
        assert seen[0] == "0"
        assert "containerd" not in seen
    apply(home, client("home", "node-a", name="listed"))
    ready(home, "home", "listed")
    enrolled(home, "node-a", "home/listed")
    for node in NODES:
        eventually(lambda node=node: curl(home, "home/listed", host(home, node)).stdout == "200", node, SECONDS)
        assert curl(home, "default/visitor", host(home, node)).returncode == 56
    home.kubectl("delete", "pod", "-n", "home", "listed")
    subprocess.run(home.command("node-a", ["touch", "/var/lib/nodeagent/logs/positions"]), check=True)
    home.kubectl("patch", "-n", SYSTEM, "daemonset/nodeagent", "--patch-file", str(ROOT / "daemonset/uninstall.yaml"))
    home.kubectl("rollout", "status", "-n", SYSTEM, "daemonset/nodeagent", f"--timeout={SECONDS:g}s", seconds=SECONDS)
    assert {each["spec"]["containers"][0]["image"] for each in agent_pods(home)} == {OWN_IMAGE}
    home.kubectl("delete", "-k", str(own_overlay), f"--timeout={SECONDS:g}s", seconds=SECONDS)
    as_it_was(home, before)
    left = subprocess.run(
        home.command("node-a", ["find", "/var/lib/nodeagent", "-type", "f"]), capture_output=True, text=True, check=True
    )
    assert left.stdout == ""
    for pod in ("home/client-node-a", "default/visitor"):
        assert curl(home, pod, host(home, "node-a")).stdout == "200"
