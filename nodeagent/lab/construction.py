"""Make and remove what a lab consists of on the machine. Everything is found by the lab's name, so
a half-made lab can be removed too.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nodeagent.errors import LabError
from nodeagent.lab import cgroup, linux
from nodeagent.lab.layout import NETNS_DIRECTORY, Layout, Node, write_json
from nodeagent.lab.processes import inside, spawn

_END_SECONDS = 5.0
_TOOLS = {"nft": "nftables", "nsenter": "util-linux", "setpriv": "util-linux", "sleep": "coreutils"}


def check_machine() -> None:
    """Raise LabError if this is not root or a tool is missing."""
    if os.geteuid() != 0:
        raise LabError("a lab is made of namespaces and cgroups, and that takes root: run it with sudo")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is not installed: apt-get install {package}")
    cgroup.hierarchy()


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Keep other processes from changing the lab; the lock file goes with the lab."""
    path = layout.root / f".{layout.name}.lock"
    while True:
        layout.root.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another lab's removal took the folder
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)
    try:
        yield
    finally:
        if not layout.state.exists():
            path.unlink(missing_ok=True)
            with suppress(OSError):  # other labs live there
                layout.root.rmdir()
                layout.root.parent.rmdir()
        os.close(descriptor)


def build(layout: Layout, nodes: Sequence[Node]) -> None:
    """Make folders, cgroups, namespaces, links and Node objects; raises OSError."""
    from nodeagent.lab import network  # pyroute2 is slow to import, and most commands need no network made

    group = layout.cgroup(cgroup.hierarchy())
    for directory in (
        layout.objects,
        layout.state / "enrolled",
        *(layout.desired(node.name) for node in nodes),
        *(layout.pod_logs(node.name) for node in nodes),
    ):
        directory.mkdir(parents=True, exist_ok=True)
    for node in nodes:
        (group / node.name / "kubepods").mkdir(parents=True, exist_ok=True)
        (group / node.name / "empty").mkdir(exist_ok=True)  # what an agent captures where pods have sidecars
    (group / "exec").mkdir(exist_ok=True)
    asyncio.run(network.build(layout, nodes))
    for node in nodes:
        write_json(layout.object_file("Node", "", node.name), _node_object(node))


def _node_object(node: Node) -> dict[str, object]:
    addresses = [{"type": "InternalIP", "address": str(address)} for address in node.addresses] + [
        {"type": "Hostname", "address": node.name}
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": str(node.pods[0]), "podCIDRs": [str(network) for network in node.pods]},
        "status": {"addresses": addresses},
    }


def start_kubelet(layout: Layout, node: Node) -> None:
    """Start *node*'s kubelet in place of one that may hang."""
    group = layout.cgroup(cgroup.hierarchy()) / node.name / "kubelet"
    cgroup.kill(group)  # one that hangs
    layout.socket(node.name).unlink(missing_ok=True)
    argv = [sys.executable, "-m", "nodeagent.lab.kubelet", str(layout.root), layout.name, str(node.index)]
    pid = spawn(inside(layout.netns(node.name), argv), group, layout.node(node.name) / "kubelet.log")
    (layout.node(node.name) / "kubelet.pid").write_text(str(pid))


def destroy(layout: Layout) -> bool:
    """Remove everything of the lab, whatever state it is in; return whether there was anything.
    Raises LabError if something stays.
    """
    group = layout.cgroup(cgroup.hierarchy())
    there = group.exists() or layout.state.exists()
    _end_kubelets(layout)
    cgroup.remove(group)  # from here on nobody makes anything
    spaces = list(NETNS_DIRECTORY.glob(f"{layout.name}.*"))
    cgroup.reap_all(int(text) for text in (path.read_text() for path in layout.state.glob("*/*.pid")) if text)
    pins = _pins(layout)
    for directory in pins:  # an unlinked pin of a link detaches its program
        shutil.rmtree(directory)
    for space in spaces:
        linux.drop_namespace(space)
    if layout.state.exists():
        shutil.rmtree(layout.state)
    return there or bool(pins or spaces)


def _end_kubelets(layout: Layout) -> None:
    """Have the kubelets that live kill their pods and end; the others are killed with the cgroup."""
    connections = []
    for path in layout.state.glob("*/kubelet.sock"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_END_SECONDS)
        connections.append(connection)
        with suppress(OSError):
            connection.connect(str(path))
            connection.sendall(b'{"end": true}\n')
    for connection in connections:
        with connection, suppress(OSError):
            connection.recv(1)


def _pins(layout: Layout) -> list[Path]:
    pattern = re.compile(rf"nodeagent-lab-{layout.name}-node\d+")
    return [path for path in Path("/sys/fs/bpf").glob(f"nodeagent-lab-{layout.name}-*") if pattern.fullmatch(path.name)]
