"""Make and remove what a cluster consists of on the machine. Everything is found by its layout, so a
half-made cluster can be removed too.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nodeagent.errors import LabError
from nodeagent.lab import cgroup, linux
from nodeagent.lab.kube import config, node, pki
from nodeagent.lab.kube.layout import CONTROL, FOLDER_PREFIX, FOLDERS, STATE_ROOT, KubeLayout, KubeNode
from nodeagent.lab.layout import NETNS_DIRECTORY
from nodeagent.lab.processes import inside, spawn, tail

PROGRAMS: Final = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip6tables": "iptables",
    "mount": "mount",
    "nsenter": "util-linux",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
"""What a cluster runs beside Kubernetes' own binary, and Debian's package of it."""
CONTROL_PLANE: Final = ("etcd", "apiserver", "controller-manager", "scheduler")
NODE_COMPONENTS: Final = ("containerd", "kube-proxy", "kubelet")
_INIT: Final = """# The first process of a node: what ends is started again, as systemd does it, and orphans are reaped.
run() { # NAME COMMAND…
  local log={folder}/$1.log; shift
  while :; do
    "$@" >> "$log" 2>&1
    echo "ended with status $?; it is started again" | tee -a "$log" >> "${log%.log}.ended"
    sleep 0.5
  done
}
trap 'exit 0' TERM
cd /
run containerd {containerd} &
until [ -e {serving} ]; do sleep 0.1; done
run kube-proxy {proxy} &
run kubelet {kubelet} &
while :; do sleep 1000 & wait $!; done
"""
_REMOVE_SECONDS: Final = 10.0


def check_machine() -> None:
    """Raise LabError if this is not root or a program is missing."""
    if os.geteuid() != 0:
        raise LabError("a cluster is made of namespaces and cgroups, and that takes root: run it with sudo")
    if missing := {package for program, package in PROGRAMS.items() if shutil.which(program) is None}:
        raise LabError(f"programs of a cluster are missing: apt-get install {' '.join(sorted(missing))}")
    cgroup.hierarchy()


def new_folder() -> tuple[Path, int]:
    """Make a cluster's folder; return it with a descriptor that holds its lock until it is closed."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{FOLDER_PREFIX}", dir=FOLDERS))
    lock = os.open(hidden / "lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    hidden.chmod(0o755)  # pods of any user read what is mounted from here
    folder = hidden.with_name(hidden.name.removeprefix("."))
    hidden.rename(folder)
    return folder, lock


def build(layout: KubeLayout, nodes: Sequence[KubeNode], binary: Path, cni: config.Cni, max_pods: int) -> None:
    """Write every file and make the network; raises OSError."""
    from nodeagent.lab.kube import network  # pyroute2 is slow to import, and most commands make no network

    for place in (CONTROL, *(each.name for each in nodes)):
        layout.node(place).mkdir()
    pki.write(layout, nodes)
    for each in nodes:
        folder = layout.node(each.name)
        for part in ("view", *config.NODE_FOLDERS):
            if part != "containerd":  # comes with its images
                (folder / part).mkdir()
        (folder / "kubelet.json").write_text(config.kubelet_file(layout, max_pods))
        (folder / "proxy.json").write_text(config.proxy_file(layout, each))
        (folder / "net.d" / "10-lab.conflist").write_text(config.network_file(cni, each))
        root = config.NODE_FOLDERS["containerd"]
        state = config.CONTAINERD.parent  # as it is by default
        (folder / "containerd.toml").write_text(config.containerd_file(root, state, config.CONTAINERD))
        (folder / "init").write_text(_init(layout, each, binary))
    asyncio.run(network.build(layout, nodes))


def _init(layout: KubeLayout, own: KubeNode, binary: Path) -> str:
    folder = layout.node(own.name)
    commands = {
        "folder": [str(folder)],
        "serving": [str(layout.serving)],
        "containerd": ["containerd", "-c", str(folder / "containerd.toml")],
        "proxy": [str(binary), "proxy", "--config", str(folder / "proxy.json")],
        "kubelet": [str(binary), "kubelet", *config.kubelet(layout, own)],
    }
    text = _INIT
    for name, command in commands.items():
        text = text.replace(f"{{{name}}}", shlex.join(command))
    return text


def start_control(layout: KubeLayout, component: str, argv: Sequence[str]) -> None:
    """Start a *component* of the control plane."""
    group = layout.cgroup(cgroup.hierarchy(), CONTROL)
    pid = spawn(inside(layout.netns(CONTROL), argv), group, layout.log(CONTROL, component))
    pid_file(layout, component).write_text(str(pid))


def pid_file(layout: KubeLayout, component: str) -> Path:
    """Return the file with the pid of the control plane's *component*."""
    return layout.node(CONTROL) / f"{component}.pid"


def start_node(layout: KubeLayout, own: KubeNode) -> None:
    """Start *own*'s first process, which starts the others; raises LabError."""
    log = layout.log(own.name, "init")
    groups = node_groups(layout, own.name)
    node.make_groups(groups)
    command = [sys.executable, "-m", "nodeagent.lab.kube.node", str(layout.folder), own.name, *map(str, groups)]
    with log.open("ab") as output:
        done = subprocess.run(
            inside(layout.netns(own.name), command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise LabError(f"{own.name}: the node cannot be made; the end of {log}:\n{tail(log)}")


def node_groups(layout: KubeLayout, place: str) -> Sequence[Path]:
    """Return the cgroups of a node, one a hierarchy."""
    return [layout.cgroup(each, place) for each in (*node.v1_hierarchies(), cgroup.hierarchy())]


def destroy(layout: KubeLayout) -> None:
    """Remove everything of the cluster, whatever state it is in. Raises LabError if something stays."""
    for hierarchy in (cgroup.hierarchy(), *node.v1_hierarchies()):
        for group in hierarchy.glob(f"kube-{layout.identifier}-*"):
            cgroup.remove(group, parent=True)
    _take_statuses(layout)
    for space in NETNS_DIRECTORY.glob(f"kube-{layout.name}.*"):
        linux.drop_namespace(space)
    _remove_folder(layout.folder)


def _take_statuses(layout: KubeLayout) -> None:
    files = [*layout.folder.glob("*/*.pid"), *layout.folder.glob("*/pid")]
    cgroup.reap_all(int(text) for text in (path.read_text() for path in files) if text)


def _remove_folder(folder: Path) -> None:
    """Remove *folder*; a node's mounts are gone when its last process is, which takes a moment.

    The lock goes last: where this is broken off, the next sweep takes the folder for one to remove.
    """
    deadline = time.monotonic() + _REMOVE_SECONDS
    while folder.exists():
        try:
            for part in folder.glob("*/"):
                shutil.rmtree(part, onerror=_unless_gone)
            shutil.rmtree(folder, onerror=_unless_gone)
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"{folder}: cannot be removed: {error}") from None
            time.sleep(0.05)


def _unless_gone(function: object, path: str, raised: tuple[object, BaseException, object]) -> None:
    """Go on where somebody else, as the last kubelet of a node, has removed *path* meanwhile."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]


def sweep() -> None:
    """Remove what clusters have left whose processes have all ended: of a crash, or of a room."""
    for folder in FOLDERS.glob(f"{FOLDER_PREFIX}*"):
        with _free(folder / "lock") as free:
            if free:
                destroy(KubeLayout("", folder))  # a room's namespaces have gone with it


@contextmanager
def _free(lock: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # being removed
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def forget(state: Path) -> None:
    """Remove the file that says where a cluster is, and its folders if they are empty then."""
    state.unlink(missing_ok=True)
    with suppress(OSError):  # other clusters, or labs, live there
        STATE_ROOT.rmdir()
        STATE_ROOT.parent.rmdir()
