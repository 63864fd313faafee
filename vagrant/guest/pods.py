#!/usr/bin/python3
"""The lab's pods on a node that systemd runs: each is a service with a network namespace of its own, below
kubepods.slice, and an object in the agent's folder; and a service of the machine that is none. Only the
standard library, as it runs beside the agent.

usage: pods.py objects FOLDER | node | units | network POD | forget POD | serve POD | exec POD COMMAND…

Every node gets the objects of all pods, and the marks of those of the other nodes: who copies objects
to nodes that share no folder says in the same way which pods take mTLS.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NODES = {"node-a": 1, "node-b": 2}
"""By host name; a node's number is part of all of its addresses."""
NAMESPACE = "lab"
PORT = 8080
SLICE = Path("/sys/fs/cgroup/kubepods.slice")
SYSTEM = Path("/sys/fs/cgroup/system.slice")
VOLUMES = Path("/var/lib/nodeagent-lab/volumes")
SYSCTLS = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


@dataclass(frozen=True)
class Pod:
    """A pod: *number* is the last part of its addresses, *annotations* what it asks the agent for."""

    name: str
    node: str
    number: int
    serves: bool = True
    service: bool = False
    """A service of the machine: agent.yaml names its unit, and the agent itself tells of it."""
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, str]:
        return f"10.42.{NODES[self.node]}.{self.number}", f"fd00:42:{NODES[self.node]}::{self.number:x}"

    @property
    def uid(self) -> str:
        return f"lab-{self.name}"

    @property
    def unit(self) -> str:
        return f"{self.name}.service" if self.service else f"pod@{self.name}.service"

    @property
    def cgroup(self) -> Path:
        return SYSTEM / self.unit if self.service else SLICE / self.unit

    @property
    def volume(self) -> Path:
        return Path("/var/log", self.name) if self.service else VOLUMES / self.uid / "log"

    def object(self) -> dict[str, Any]:
        """Return the pod as an API server would show it, with its place on its node."""
        place = {"lab.nodeagent.io/netns": f"/run/netns/{self.name}", "lab.nodeagent.io/cgroup": str(self.cgroup)}
        container: dict[str, Any] = {"name": "main"}
        if self.serves:
            container["ports"] = [{"name": "http", "containerPort": PORT, "protocol": "TCP"}]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "uid": self.uid,
                "labels": {"app": self.name},
                "annotations": {**place, **self.annotations},
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.name,
                "containers": [container],
                "volumes": [{"name": "log", "emptyDir": {}}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.addresses[0],
                "podIPs": [{"ip": address} for address in self.addresses],
                "hostIP": node_addresses(self.node)[0],
                "hostIPs": [{"ip": address} for address in node_addresses(self.node)],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


CLUSTER_IP = "10.43.0.3"
"""Of the Service of ``near``: known to the agents alone, which balance it for captured pods."""
NEAR = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "near", "namespace": NAMESPACE},
    "spec": {
        "clusterIP": CLUSTER_IP,
        "clusterIPs": [CLUSTER_IP],
        "selector": {"app": "near"},
        "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
    },
}
PODS = {
    pod.name: pod
    for pod in (
        Pod("client", "node-a", 2, serves=False),
        Pod("near", "node-a", 3, annotations={"nodeagent.io/path": "kernel", "nodeagent.io/bypass": "enabled"}),
        Pod("far", "node-b", 2, annotations={"nodeagent.io/log-files": "log/*.log"}),
        Pod("legacy", "node-b", 9, service=True),
    )
}


def node_addresses(node: str) -> tuple[str, str]:
    """Return the addresses of *node* on the network between the nodes; IPv4's is the Vagrantfile's too."""
    return f"192.168.56.{10 + NODES[node]}", f"fd00:56::{10 + NODES[node]:x}"


def ip(*words: str, netns: str = "") -> str:
    inside = ("-netns", netns) if netns else ()
    return subprocess.run(["ip", *inside, *words], check=True, capture_output=True, text=True).stdout


def link_of(address: str) -> str:
    """Return the name of the link that has *address*."""
    for link in json.loads(ip("-json", "address", "show")):
        if any(each.get("local") == address for each in link["addr_info"]):
            return str(link["ifname"])
    sys.exit(f"pods.py: no link has {address}: is this one of {', '.join(NODES)}, on the network of the Vagrantfile?")


def node() -> None:
    """Set up what the node's kernel needs to be a router of its pods, and how the other nodes' are reached."""
    own = socket.gethostname()
    if own not in NODES:
        sys.exit(f"pods.py: this machine is called {own}: allowed: {', '.join(NODES)}")
    subprocess.run(["sysctl", "--quiet", "--write", *SYSCTLS], check=True)
    link = link_of(node_addresses(own)[0])
    ip("address", "replace", f"{node_addresses(own)[1]}/64", "dev", link, "nodad")
    for other, number in NODES.items():
        if other != own:
            ip("route", "replace", f"10.42.{number}.0/24", "via", node_addresses(other)[0])
            ip("-6", "route", "replace", f"fd00:42:{number}::/64", "via", node_addresses(other)[1])


def network(pod: Pod) -> None:
    """Make the pod's network namespace, and a routed link to it."""
    forget(pod)
    link = f"pod{pod.number}"
    ip("netns", "add", pod.name)
    ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    ip("address", "add", f"10.42.{NODES[pod.node]}.1/32", "dev", link)
    ip("address", "add", "fe80::1/64", "dev", link, "nodad")
    ip("link", "set", link, "up")
    for address in pod.addresses:
        ip("address", "add", address, "dev", "eth0", "nodad", netns=pod.name)
    for each in ("lo", "eth0"):
        ip("link", "set", each, "up", netns=pod.name)
    ip("route", "add", "default", "via", f"10.42.{NODES[pod.node]}.1", "dev", "eth0", "onlink", netns=pod.name)
    ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", netns=pod.name)
    for address in pod.addresses:
        ip("route", "add", address, "dev", link)
    pod.volume.mkdir(parents=True, exist_ok=True)


def forget(pod: Pod) -> None:
    """Remove the pod's network namespace, and with it its link; it may not be there."""
    if Path("/run/netns", pod.name).exists():
        ip("netns", "delete", pod.name)


def objects(folder: Path) -> None:
    """Write all objects into *folder*, and the marks of the pods of other nodes beside them."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    found = {f"Namespace..{NAMESPACE}": namespace, f"Service.{NAMESPACE}.near": NEAR}
    for pod in (pod for pod in PODS.values() if not pod.service):
        found[f"Pod.{NAMESPACE}.{pod.name}"] = pod.object()
        account = {"name": pod.name, "namespace": NAMESPACE}
        found[f"ServiceAccount.{NAMESPACE}.{pod.name}"] = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": account,
        }
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    (folder / "enrolled").mkdir(exist_ok=True)
    for name, value in found.items():
        temporary = folder / "objects" / f".{name}"
        temporary.write_text(json.dumps(value, indent=1))
        temporary.rename(folder / "objects" / f"{name}.json")
    for pod in PODS.values():
        if pod.node != socket.gethostname() and not pod.service:
            (folder / "enrolled" / pod.uid).touch()


class Handler(BaseHTTPRequestHandler):
    """Answers with the pod's name and what it was told of its client; a line a request into the log of its volume."""

    protocol_version = "HTTP/1.1"
    pod: Pod

    def do_GET(self) -> None:
        with (self.pod.volume / "app.log").open("a") as log:  # anew for each line, so that it may be rotated
            log.write(f"{self.command} {self.path}\n")
        client = self.headers.get("X-Forwarded-Client-Cert", "")
        body = f"{self.pod.name} {client}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the log is the volume's."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


def serve(pod: Pod) -> None:
    """Be the pod's program, until it is told to end."""
    if not pod.serves:
        os.execvp("sleep", ["sleep", "infinity"])
    Handler.pod = pod
    Server(("::", PORT), Handler).serve_forever()


def execute(pod: Pod, command: list[str]) -> None:
    """Become *command*, in the pod's cgroup and network namespace."""
    (pod.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    os.execvp("nsenter", ["nsenter", f"--net=/run/netns/{pod.name}", *command])


def main(words: list[str]) -> None:
    match words:
        case ["objects", folder]:
            objects(Path(folder))
        case ["node"]:
            node()
        case ["units"]:
            print(*(pod.unit for pod in PODS.values() if pod.node == socket.gethostname()))
        case ["network", name] if name in PODS:
            network(PODS[name])
        case ["forget", name] if name in PODS:
            forget(PODS[name])
        case ["serve", name] if name in PODS:
            serve(PODS[name])
        case ["exec", name, *command] if name in PODS and command:
            execute(PODS[name], command)
        case _:
            sys.exit(f"{__doc__}\npods: {', '.join(PODS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
