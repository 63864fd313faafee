"""The agents' DaemonSet on a real cluster: what its users see."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.layout import CONTROL
from tests.kube.mesh import (
    SECONDS,
    SYSTEM,
    agents,
    apply,
    curl,
    enrolled,
    get,
    namespace,
    policy,
    ready,
    rolled_out,
    states,
    statuses,
)
from tests.kube.workloads import Document, client, deployment, nginx, service
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents
WEB = "http://web.shop/"
CLIENTS = ("shop/client-node-a", "shop/client-node-b")
OUTSIDER = "default/outsider"


@pytest.fixture(scope="module")
def shop(mesh: Kube) -> Iterator[Kube]:
    """Two servers and two clients in the mesh, one of each on a node, and a client outside of it."""
    accounts: list[Document] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "shop"}}
        for name in ("web", "client")
    ]
    apply(
        mesh,
        namespace("shop", **{"nodeagent.io/dataplane": "enabled"}),
        *accounts,
        deployment("web", "shop", account="web"),
        service("web", "shop"),
        *(client("shop", node, account="client") for node in ("node-a", "node-b")),
        client("default", "node-a", name="outsider"),
    )
    mesh.kubectl("rollout", "status", "-n", "shop", "deployment/web", f"--timeout={SECONDS:g}s")
    ready(mesh, "shop")
    ready(mesh, "default", "outsider")
    for node in ("node-a", "node-b"):
        enrolled(mesh, node, f"shop/client-{node}")
    yield mesh
    mesh.kubectl("delete", "namespace", "shop", "--wait=false")
    mesh.kubectl("delete", "pod", "outsider", "--wait=false")


@contextmanager
def in_force(kube: Kube, document: Document) -> Iterator[None]:
    """Within, *document* is in the cluster."""
    apply(kube, document)
    try:
        yield
    finally:
        kube.kubectl("delete", document["kind"], "-n", document["metadata"]["namespace"], document["metadata"]["name"])


def pods(kube: Kube, app: str = "web") -> Any:
    return get(kube, "pods", "-n", "shop", "-l", f"app={app}")["items"]


def address(kube: Kube, node: str, family: int = 0) -> str:
    """Return the address of the server on *node*."""
    found = next(each for each in pods(kube) if each["spec"]["nodeName"] == node)
    return str(found["status"]["podIPs"][family]["ip"])


@pytest.mark.parametrize("pod", CLIENTS)
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_service_answers_from_every_node_in_both_families(shop: Kube, pod: str, family: str) -> None:
    assert statuses(shop, pod, WEB, family, times=4) == ["200"] * 4


def test_the_others_are_left_alone(shop: Kube) -> None:
    assert curl(shop, OUTSIDER, WEB).stdout == "200"


def test_nothing_of_a_request_is_seen_between_nodes(shop: Kube) -> None:
    """By tcpdump on the wire: a marked header of a pod in the mesh, and as a control one of another pod."""
    capture = ["tcpdump", "-i", "wire", "-U", "-A", "-s", "0", "-l", "tcp"]
    with subprocess.Popen(
        shop.command(CONTROL, capture), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as seen:
        assert seen.stderr
        assert seen.stdout
        while "listening on" not in seen.stderr.readline():
            pass
        server = address(shop, "node-b")
        assert curl(shop, CLIENTS[0], "-H", "x-mark: of-the-mesh", f"http://{server}/").stdout == "200"
        assert curl(shop, OUTSIDER, "-H", "x-mark: of-nobody", f"http://{server}/").stdout == "200"
        lines = []
        for line in seen.stdout:  # the outsider's request came last
            lines.append(line)
            if "of-nobody" in line:
                break
        seen.terminate()
    assert not any("of-the-mesh" in line for line in lines)


def test_strict_refuses_who_has_no_certificate_and_probes_pass(shop: Kube) -> None:
    before = {each["metadata"]["uid"] for each in pods(shop)}
    with in_force(shop, policy("PeerAuthentication", "strict", "shop", {"mtls": {"mode": "STRICT"}})):
        eventually(lambda: curl(shop, OUTSIDER, WEB).returncode == 56, "the outsider's connection reset", SECONDS)
        for pod in CLIENTS:
            assert statuses(shop, pod, WEB, times=4) == ["200"] * 4
        # The kubelet asks once a second and gives up after two: a new pod is only ready when it was answered.
        shop.kubectl("rollout", "restart", "-n", "shop", "deployment/web")
        shop.kubectl("rollout", "status", "-n", "shop", "deployment/web", f"--timeout={SECONDS:g}s")
        assert not before & {
            each["metadata"]["uid"] for each in pods(shop) if "deletionTimestamp" not in each["metadata"]
        }
        for pod in CLIENTS:
            assert statuses(shop, pod, WEB, times=4) == ["200"] * 4
    eventually(lambda: curl(shop, OUTSIDER, WEB).stdout == "200", "the outsider answered again", SECONDS)


def test_a_service_without_a_selector_keeps_mtls_to_pods_and_reaches_what_is_none(shop: Kube) -> None:
    """Input: EndpointSlices as a person writes them, for web's pods at STRICT, and for the API server. Verdict: both
    are reached by the Services' names; without mTLS the pods would refuse.
    """
    server = get(shop, "endpointslices", "-n", "default", "kubernetes")
    port = {"name": "any", "port": 80}
    apply(
        shop,
        *(service(name, "shop", selector=None, ports=[port], ipFamilyPolicy=None) for name in ("manual", "outside")),
        slice_of("manual", 80, *(each["status"]["podIP"] for each in pods(shop))),
        slice_of("outside", server["ports"][0]["port"], *server["endpoints"][0]["addresses"]),
    )
    outside = ("-k", "https://outside.shop:80/livez")
    with in_force(shop, policy("PeerAuthentication", "strict", "shop", {"mtls": {"mode": "STRICT"}})):
        for pod in CLIENTS:
            eventually(
                lambda pod=pod: statuses(shop, pod, "http://manual.shop/", times=8) == ["200"] * 8, "pods", SECONDS
            )
            eventually(lambda pod=pod: curl(shop, pod, *outside).stdout in ("200", "401"), "what is outside", SECONDS)
    shop.kubectl("delete", "-n", "shop", "service/manual", "service/outside", "--wait=false")


def slice_of(name: str, port: int, *addresses: str) -> Document:
    """Return an EndpointSlice of the shop's Service *name*."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": "any", "port": port}],
    }


def test_a_policy_decides_by_identity_and_path(shop: Kube) -> None:
    rule = {"to": [{"operation": {"paths": ["/secret"]}}]}
    spec = {"action": "DENY", "selector": {"matchLabels": {"app": "web"}}, "rules": [rule]}
    with in_force(shop, policy("AuthorizationPolicy", "secret", "shop", spec)):
        for pod in CLIENTS:
            eventually(
                lambda pod=pod: statuses(shop, pod, f"{WEB}secret", times=4) == ["403"] * 4, "refused by path", SECONDS
            )
            assert statuses(shop, pod, WEB, times=4) == ["200"] * 4


def test_a_stateful_set_is_reached_by_the_names_of_its_pods(shop: Kube) -> None:
    labels = {"app": "store"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [nginx()]},
    }
    spec = {"serviceName": "store", "replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    stateful = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "store", "namespace": "shop"},
        "spec": spec,
    }
    apply(shop, service("store", "shop", clusterIP="None"), stateful)
    shop.kubectl("rollout", "status", "-n", "shop", "statefulset/store", f"--timeout={SECONDS:g}s")
    for pod in CLIENTS:
        for name in ("store-0", "store-1"):
            url = f"http://{name}.store.shop.svc.cluster.local/"
            eventually(lambda pod=pod, url=url: curl(shop, pod, url).stdout == "200", url, SECONDS)
    # The same name with another uid.
    node = get(shop, "pod", "-n", "shop", "store-0")["spec"]["nodeName"]
    shop.kubectl("delete", "pod", "-n", "shop", "store-0")
    shop.kubectl("rollout", "status", "-n", "shop", "statefulset/store", f"--timeout={SECONDS:g}s")
    node = get(shop, "pod", "-n", "shop", "store-0")["spec"]["nodeName"]
    enrolled(shop, node, "shop/store-0")
    url = "http://store-0.store.shop.svc.cluster.local/"
    eventually(lambda: curl(shop, CLIENTS[0], url).stdout == "200", url, SECONDS)
    shop.kubectl("delete", "-n", "shop", "statefulset/store", "service/store", "--wait=false")


def test_an_address_belongs_to_who_has_it_now(shop: Kube) -> None:
    """Input: three pods that have one address, one after the other: in the mesh, in the mesh as somebody else of the
    same name, and outside of it. Verdict: a client of the other node reaches each, by mTLS whom STRICT protects,
    and from the address of what was in the mesh nobody gets in.
    """
    address = ""
    with in_force(shop, policy("PeerAuthentication", "strict", "shop", {"mtls": {"mode": "STRICT"}})):
        for namespace, name, account in (
            ("shop", "one", "web"),
            ("shop", "one", "client"),
            ("default", "three", "default"),
        ):
            pod = client(namespace, "node-b", name=name, account=account)
            pod["spec"]["containers"] = [nginx()]
            apply(shop, pod)
            ready(shop, namespace, name)
            found = get(shop, "pod", "-n", namespace, name)["status"]["podIP"]
            assert found == address or not address
            address = found
            url = f"http://{address}/"
            eventually(lambda url=url: curl(shop, CLIENTS[0], url).stdout == "200", name, SECONDS)
            own, allowed = f"{namespace}/{name}", "200" if namespace == "shop" else "000"
            eventually(lambda own=own, allowed=allowed: curl(shop, own, WEB).stdout == allowed, f"{name} asks", SECONDS)
            shop.kubectl("delete", "pod", "-n", namespace, name)
            comes_next(shop, "node-b", address)


def comes_next(kube: Kube, node: str, address: str) -> None:
    """Have *node* give *address*, once it is free, to its next pod (CNI's host-local goes on after the last one)."""
    folder = "/var/lib/cni/networks/lab"
    script = f"test ! -e {folder}/{address} && printf {ip_address(address) - 1} > {folder}/last_reserved_ip.0"
    command = kube.command(node, ["sh", "-c", script])
    eventually(lambda: subprocess.run(command, check=False).returncode == 0, f"{address} is free", SECONDS)


def test_a_job_ends(shop: Kube) -> None:
    container = client("shop", "node-a")["spec"]["containers"][0]
    container["command"] = ["curl", "-sf", "-m", "20", WEB]
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}, "backoffLimit": 0}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "shop"}, "spec": spec}
    apply(shop, job)
    shop.kubectl("wait", "-n", "shop", "--for=condition=Complete", "job/once", f"--timeout={SECONDS:g}s")
    shop.kubectl("delete", "-n", "shop", "job/once", "--wait=false")


def test_a_service_answers_while_it_is_scaled(shop: Kube) -> None:
    for replicas in (4, 2):
        shop.kubectl("scale", "-n", "shop", "deployment/web", f"--replicas={replicas}")
        shop.kubectl("rollout", "status", "-n", "shop", "deployment/web", f"--timeout={SECONDS:g}s")
        for pod in CLIENTS:
            assert statuses(shop, pod, WEB, times=4) == ["200"] * 4


def test_a_new_sandbox_of_a_pod_is_enrolled(shop: Kube) -> None:
    """The kubelet makes another when the one that holds the pod's namespaces is killed; the pod stays the same."""
    apply(shop, client("shop", "node-a", name="again", account="client"))
    ready(shop, "shop", "again")
    enrolled(shop, "node-a", "shop/again")
    found = get(shop, "pod", "-n", "shop", "again")
    uid = found["metadata"]["uid"]
    before = found["status"]["podIP"]
    script = (
        f'id=$(ctr -n k8s.io containers ls \'labels."io.kubernetes.pod.uid"=={uid},'
        'labels."io.cri-containerd.kind"==sandbox\' -q) && ctr -n k8s.io task kill -s KILL $id'
    )
    subprocess.run(shop.command("node-a", ["sh", "-c", script]), check=True)

    def answered() -> bool:
        now = get(shop, "pod", "-n", "shop", "again")
        return bool(
            now["metadata"]["uid"] == uid
            and now["status"].get("podIP", before) != before
            and curl(shop, "shop/again", WEB).stdout == "200"
        )

    eventually(answered, "another sandbox, from which the Service is reached", SECONDS)
    enrolled(shop, "node-a", "shop/again")
    shop.kubectl("delete", "pod", "-n", "shop", "again", "--wait=false")


def test_containerd_may_restart(shop: Kube) -> None:
    subprocess.run(shop.command("node-b", ["pkill", "-x", "containerd"]), check=True)
    apply(shop, client("shop", "node-b", name="late", account="client"))
    ready(shop, "shop", "late")
    enrolled(shop, "node-b", "shop/late")
    assert curl(shop, "shop/late", WEB).stdout == "200"
    shop.kubectl("delete", "pod", "-n", "shop", "late", "--wait=false")


def test_an_agent_that_is_killed_while_it_enrols_leaves_no_pod_half_done(shop: Kube) -> None:
    """Input: eight pods that are made at once; as soon as one is known, every process of the agent is killed.
    Verdict: all are enrolled by the next one, and are themselves at STRICT; nobody else gets in.
    """
    names = [f"many-{number}" for number in range(8)]
    with in_force(shop, policy("PeerAuthentication", "strict", "shop", {"mtls": {"mode": "STRICT"}})):
        eventually(lambda: curl(shop, OUTSIDER, WEB).returncode == 56, "the outsider's connection reset", SECONDS)
        apply(shop, *(client("shop", "node-a", name=name, account="client") for name in names))
        eventually(lambda: any(f"shop/{name}" in states(shop, "node-a") for name in names), "one is known", SECONDS)
        kill = ["pkill", "-KILL", "-f", "[n]odeagent run -c"]  # in the node's own namespace of processes
        subprocess.run(shop.command("node-a", kill), check=True)
        ready(shop, "shop", *names)
        enrolled(shop, "node-a", *(f"shop/{name}" for name in names))
        for name in names:
            assert curl(shop, f"shop/{name}", WEB).stdout == "200"
        assert curl(shop, OUTSIDER, WEB).returncode == 56
    shop.kubectl("delete", "pod", "-n", "shop", *names, "--wait=false")


def test_an_agent_that_is_deleted_comes_back_and_enrols_who_came_meanwhile(shop: Kube) -> None:
    old = agents(shop)["node-a"]
    shop.kubectl("delete", "pod", "-n", SYSTEM, old, "--wait=false")
    apply(shop, client("shop", "node-a", name="meanwhile", account="client"))
    ready(shop, "shop", "meanwhile")
    eventually(lambda: agents(shop).get("node-a", old) != old, "another agent", SECONDS)
    rolled_out(shop)
    enrolled(shop, "node-a", "shop/meanwhile", "shop/client-node-a")
    for pod in (*CLIENTS, "shop/meanwhile"):
        assert curl(shop, pod, WEB).stdout == "200"
    shop.kubectl("delete", "pod", "-n", "shop", "meanwhile", "--wait=false")
