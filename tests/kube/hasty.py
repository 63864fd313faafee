"""Pods whose first instruction is a request to a STRICT server: whether they were in the mesh by then."""

from __future__ import annotations

from nodeagent.lab.kube import Kube
from tests.kube.mesh import apply, get, namespace, policy
from tests.kube.workloads import Document, client, container, deployment, service
from tests.waiting import eventually

REQUEST = "GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n"
FIRST = f"exec 3<>/dev/tcp/$WEB/80 && printf '{REQUEST}' >&3 && read -r line <&3 && [[ $line == *200* ]]"
"""One request, by the shell alone."""
PERSISTENT = f"tries=0; until ({FIRST}) 2> /dev/null; do tries=$((tries + 1)); sleep 0.2; done; echo $tries"
"""The first instruction of a pod: a request, and again until one is answered; how many were not."""


def strict_server(kube: Kube) -> None:
    """Make the namespace ``mesh``, which is in the mesh, and a STRICT server in it, ``web``."""
    apply(kube, namespace("mesh", **{"nodeagent.io/dataplane": "enabled"}))
    strict = policy("PeerAuthentication", "default", "mesh", {"mtls": {"mode": "STRICT"}})
    apply(kube, strict, deployment("web", "mesh"), service("web", "mesh"))


def hasty(name: str, node: str, address: str) -> Document:
    """Return a pod that asks the server at *address* as its first instruction, and ends when it was answered."""
    pod = client("mesh", node, name=name)
    pod["spec"]["restartPolicy"] = "Never"
    pod["spec"]["containers"] = [container("bash", "-c", PERSISTENT, env=[{"name": "WEB", "value": address}])]
    return pod


def tried(kube: Kube, count: int) -> list[int]:
    """Make *count* hasty pods at once, on two nodes; return how many requests of each were not answered."""
    address = get(kube, "service", "-n", "mesh", "web")["spec"]["clusterIP"]
    names = [f"hasty-{number}" for number in range(count)]
    apply(kube, *(hasty(name, f"node-{'ab'[number % 2]}", address) for number, name in enumerate(names)))

    def ended() -> bool:
        found = {each["metadata"]["name"]: each["status"]["phase"] for each in get(kube, "pods", "-n", "mesh")["items"]}
        return all(found[name] == "Succeeded" for name in names)

    eventually(ended, "all of them were answered", 60 + 6 * count)
    return [int(kube.kubectl("logs", "-n", "mesh", name)) for name in names]
