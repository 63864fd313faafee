"""Overlays of daemonset/ on a real cluster, each applied over another one as its users do it, and at work there. Of
the others, ``minimal`` is at work in all files, ``crio`` in ``test_installation.py``, ``webhook`` and
``sidecar-comparison`` in ``test_sidecars.py``.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from nodeagent.lab.kube import Kube
from nodeagent.redirect.rights import RIGHTS
from tests.kube.cluster import ROOT
from tests.kube.mesh import SECONDS, SYSTEM, apply, containers, enrolled, get, in_agent, ready, rolled_out
from tests.kube.prometheus import prometheus
from tests.kube.steady import NAMESPACE, NODES, pods_addresses, strict_pods
from tests.kube.workloads import Document, client, container
from tests.prometheus_operator import DEFINITIONS
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents; the last one rolls out
OVERLAYS = ROOT / "daemonset" / "overlays"
CA = ("-n", SYSTEM, "-l", "app=nodeagent-ca")
STRANGER = "default/passer-by"
SAY = """
import socket, sys
end = socket.create_connection((sys.argv[1], 9000), 10)
end.sendall(b"line\\n")
sys.exit(end.recv(9) != b"line\\n")
"""
METRICS = "mkdir -p /tmp/served && cd /tmp/served && echo answered 1 > metrics && exec python3 -m http.server 15014"


@pytest.fixture(scope="module")
def homes(mesh: Kube) -> Iterator[Kube]:
    """A client and servers that are STRICT, and a client outside of the mesh; afterwards the agents are as before."""
    apply(mesh, client("default", "node-a", name=STRANGER.partition("/")[2]))
    with strict_pods(mesh) as found:
        ready(mesh, *STRANGER.split("/"))
        yield found
        over(mesh, "minimal")
    mesh.kubectl("delete", "pod", STRANGER.partition("/")[2], "--wait=false")


def over(kube: Kube, overlay: str) -> None:
    """Apply *overlay* over what is there; return when all of it is at work."""
    kube.kubectl("apply", "-k", str(OVERLAYS / overlay))
    rolled_out(kube)


def carry(kube: Kube, *clients: str) -> None:
    """STRICT servers of both nodes answer *clients* of the mesh (namespace/name), and nobody else."""
    for address in pods_addresses(kube):
        for each in clients:
            eventually(lambda each=each, host=address: echoed(kube, each, host), each, SECONDS)
        assert not echoed(kube, STRANGER, address)


def echoed(kube: Kube, client: str, host: str) -> bool:
    """Say whether *host* echoes a line to *client*: by TCP, since agents keep connections of HTTP, and a minute long
    an agent that is replaced waits for those.
    """
    where, name = client.split("/")
    command = kube.kubectl_command(["exec", "-n", where, name, "--", "python3", "-c", SAY, host])
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@contextmanager
def new_pods(kube: Kube, name: str) -> Iterator[list[str]]:
    """Make a pod of a new account on each node, within: who they are nobody has been asked before."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
    made = {node: f"{name}-{node}" for node in NODES}
    apply(kube, account, *(client(NAMESPACE, node, name=pod, account=name) for node, pod in made.items()))
    ready(kube, NAMESPACE, *made.values())
    for node, pod in made.items():
        enrolled(kube, node, f"{NAMESPACE}/{pod}")
    yield [f"{NAMESPACE}/{pod}" for pod in made.values()]
    kube.kubectl("delete", "pod", "-n", NAMESPACE, *made.values(), "--wait=false")


def authorities(kube: Kube) -> dict[str, str]:
    """Return the node of each replica of the authority that is ready, by its name."""
    found = [each for each in get(kube, "pods", *CA)["items"] if "deletionTimestamp" not in each["metadata"]]
    answering = [each for each in found if all(one["ready"] for one in containers(each))]
    return {each["metadata"]["name"]: each["spec"]["nodeName"] for each in answering}


def trusted(kube: Kube) -> str:
    return str(get(kube, "configmap", "-n", SYSTEM, "nodeagent-ca-root-cert")["data"]["root-cert.pem"])


@contextmanager
def no_room(kube: Kube) -> Iterator[None]:
    """Within, the scheduler places no pod; pods that name their node run all the same."""
    kube.kubectl("cordon", *NODES)
    try:
        yield
    finally:
        kube.kubectl("uncordon", *NODES)


def test_ca_has_two_replicas_and_one_alone_is_the_whole_authority(homes: Kube) -> None:
    """Input: a second replica of the authority comes, the first ends, and nothing takes its place. Verdict: both are
    ready, on two nodes; new identities of both nodes are given by the second alone, through the Service, and what
    is trusted stays what it was; with room for it there is another one again.
    """
    roots = trusted(homes)
    (first,) = authorities(homes)
    over(homes, "ca")
    assert sorted(authorities(homes).values()) == list(NODES)
    with no_room(homes):
        homes.kubectl("delete", "pod", "-n", SYSTEM, first, "--grace-period=1")
        (second,) = authorities(homes)
        with new_pods(homes, "new") as names:
            carry(homes, *names)
        assert list(authorities(homes)) == [second]
    eventually(lambda: len(authorities(homes)) == 2, "two replicas again", SECONDS)
    assert trusted(homes) == roots


@pytest.fixture
def operated(homes: Kube) -> Iterator[Kube]:
    """The kinds of the Prometheus Operator, the overlay, and a pod with the label and the ports of the webhook's."""
    homes.kubectl("apply", "-f", str(DEFINITIONS))
    homes.kubectl("wait", "--for=condition=Established", "-f", str(DEFINITIONS), f"--timeout={SECONDS:g}s")
    (webhook,) = (
        each["spec"]["template"]
        for each in yaml.safe_load_all((ROOT / "daemonset" / "webhook" / "service.yaml").read_text())
        if each["kind"] == "Deployment"
    )
    stand_in = client(SYSTEM, "node-b", name="webhook", labels=webhook["metadata"]["labels"])
    served = container("sh", "-c", METRICS, ports=webhook["spec"]["containers"][0]["ports"])
    stand_in["spec"]["containers"] = [served]
    apply(homes, stand_in)
    over(homes, "prometheus-operator")
    ready(homes, SYSTEM, "webhook")
    yield homes
    homes.kubectl("delete", "-f", str(DEFINITIONS))
    homes.kubectl("delete", "pod", "-n", SYSTEM, "webhook", "--wait=false")


def test_prometheus_operator_scrapes_agents_authority_and_webhook_and_wakes_nobody(
    operated: Kube, tmp_path: Path
) -> None:
    """Input: the overlay's objects as the API server has taken them, and a real Prometheus that is told of them what
    the operator would tell it; the webhook's pod is one with its label and its ports. Verdict: of all pods of the
    namespace each node's agent, and at their named ports the authority's replicas and the webhook, are scraped and
    answer; every alert can be evaluated, and none is about to fire.
    """
    monitors = get(operated, "podmonitors", "-n", SYSTEM)["items"]
    alerts = get(operated, "prometheusrule", "-n", SYSTEM, "nodeagent")
    wanted = {(f"{SYSTEM}/nodeagent", f"http://{own.addresses[0]}:15020/metrics"): "up" for own in operated.nodes}
    for app in ("nodeagent-ca", "nodeagent-webhook"):
        addresses = eventually(lambda app=app: addresses_of(operated, app), f"only {app} of now are there", SECONDS)
        wanted |= {(f"{SYSTEM}/{app}", f"http://{address}:15014/metrics"): "up" for address in addresses}
    with prometheus(operated, tmp_path, monitors, alerts) as asked:

        def scraped() -> bool:
            found = asked.targets()
            assert found == wanted, found
            return True

        def evaluated() -> bool:
            found = {each["name"]: (each["health"], each["state"]) for each in asked.rules()}
            assert found == dict.fromkeys(names(alerts), ("ok", "inactive")), found
            return True

        eventually(scraped, "whom it scrapes", SECONDS)
        eventually(evaluated, "every alert is evaluated", SECONDS)
        captured = asked.get("query?query=nodeagent_enrolled_pods")["result"]
        assert {each["metric"]["node"] for each in captured if int(each["value"][1]) > 0} == set(NODES)


def addresses_of(kube: Kube, app: str) -> list[str]:
    """Return the addresses of the pods of *app*; none while one of them is about to end."""
    found = get(kube, "pods", "-n", SYSTEM, "-l", f"app={app}")["items"]
    ending = any("deletionTimestamp" in each["metadata"] for each in found)
    return [] if ending else [each["status"]["podIP"] for each in found]


def names(alerts: Document) -> set[str]:
    """Return the names of a PrometheusRule's alerts."""
    found: set[str] = set()
    for group in alerts["spec"]["groups"]:
        found |= {each["alert"] for each in group["rules"]}
    return found


def test_unprivileged_carries_traffic_by_the_rights_that_it_lists_and_has_no_workload_api(homes: Kube) -> None:
    """Verdict: the agents have the listed capabilities and no others, and see no process of their node; pods are
    captured and have mTLS, new ones too; a pod that asks for the Workload API is in the mesh, and its faults say what
    it takes; one with a volume of the driver does not start, and its Events say it.
    """
    over(homes, "unprivileged")
    listed = set(agents_container(homes)["securityContext"]["capabilities"]["add"])
    for node in NODES:
        assert held(in_agent(homes, node, "cat", "/proc/self/status")) == listed_mask(listed)
        assert "nodeagent" in in_agent(homes, node, "cat", "/proc/1/cmdline")
    asks = client(NAMESPACE, "node-a", name="asks")
    asks["metadata"]["annotations"] = {"nodeagent.io/workload-api": "enabled"}
    mounts = client(NAMESPACE, "node-b", name="mounts")
    mounts["spec"]["volumes"] = [{"name": "api", "csi": {"driver": "csi.nodeagent.io", "readOnly": True}}]
    mounts["spec"]["containers"][0]["volumeMounts"] = [{"name": "api", "mountPath": "/run/api", "readOnly": True}]
    apply(homes, asks, mounts)
    ready(homes, NAMESPACE, "asks")
    carry(homes, f"{NAMESPACE}/client-node-a", f"{NAMESPACE}/asks")
    eventually(lambda: any("hostPID: true" in each for each in faults(homes, "node-a", "asks")), "its faults", SECONDS)
    eventually(lambda: "hostPID is missing" in events(homes, "mounts"), "its Events", SECONDS)
    assert get(homes, "pod", "-n", NAMESPACE, "mounts")["status"]["phase"] == "Pending"
    homes.kubectl("delete", "pod", "-n", NAMESPACE, "asks", "mounts")


def agents_container(kube: Kube) -> Document:
    """Return what the DaemonSet says of its container."""
    (found,) = get(kube, "daemonset", "-n", SYSTEM, "nodeagent")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def held(status: str) -> set[int]:
    """Return the sets of capabilities that a process has and may ever have, as numbers, by its *status*
    (proc_pid_status(5)): one where all are the same.
    """
    return {int(each, 16) for each in re.findall(r"^Cap(?:Prm|Eff|Bnd):\s*([0-9a-f]+)$", status, re.MULTILINE)}


def listed_mask(listed: set[str]) -> set[int]:
    """Return the set of the capabilities *listed*, as :func:`held` does."""
    numbers = {right.name: right.number for right in RIGHTS}
    return {sum(1 << numbers[name] for name in listed)}


def faults(kube: Kube, node: str, pod: str) -> list[str]:
    """Return what *node*'s agent finds wrong with *pod*."""
    rows = json.loads(in_agent(kube, node, "nodeagent", "get", "pods", "-o", "json"))
    (found,) = (each["faults"] for each in rows if each["pod"] == pod)
    return list(found)


def events(kube: Kube, pod: str) -> str:
    """Return what is told of *pod*."""
    found = get(kube, "events", "-n", NAMESPACE, f"--field-selector=involvedObject.name={pod}")["items"]
    return " ".join(each.get("message", "") for each in found)
