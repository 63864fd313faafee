"""A Kubernetes cluster on this machine: the Python side of ``nodeagent lab kube``.

    with Kube.up(name="mine") as kube:
        kube.kubectl("apply", "-f", "app.yaml")
        subprocess.run(kube.command("node-a", ["ip", "route"]))

A cluster belongs to no process: its file below ``/run/nodeagent/kube`` says where it is, another
process may open it, and whoever says ``down`` ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nodeagent.errors import LabError
from nodeagent.lab import cgroup
from nodeagent.lab.kube import config, construction, images, pki, seed
from nodeagent.lab.kube.api import KubeApi
from nodeagent.lab.kube.construction import CONTROL_PLANE, NODE_COMPONENTS
from nodeagent.lab.kube.layout import CONTROL, MAX_NODES, STATE_ROOT, KubeLayout, KubeNode, built, cache, state_file
from nodeagent.lab.layout import Draft, Object, write_json
from nodeagent.lab.processes import inside, tail

_POLL_SECONDS: Final = 0.05
_API_SECONDS: Final = 120.0
_NODES_SECONDS: Final = 120.0
_DNS_SECONDS: Final = 60.0
_KUBECTL_SECONDS: Final = 120.0
_LINES: Final = 12
"""Of a component's log, in a message about it."""
_ENTER: Final = """target=$1 at=$2; shift 2
for group; do shift; [ "$group" = -- ] && break; echo $$ > "$group/cgroup.procs"; done
exec nsenter --target "$target" --all -- sh -c 'cd "$0" 2> /dev/null; exec "$@"' "$at" "$@"
"""
"""Run what follows ``--`` in a node, in its cgroups (to enter a cgroup namespace moves nobody)."""
Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class KubeShape:
    """What cannot be changed in a cluster that is up."""

    nodes: int = 2
    cni: config.Cni = "ptp"
    dns: bool = True
    max_pods: int = 250


class Kube:
    """A cluster that is up."""

    def __init__(self, layout: KubeLayout, shape: KubeShape, binary: Path) -> None:
        self.layout = layout
        self.shape = shape
        self.nodes = [KubeNode(number) for number in range(1, shape.nodes + 1)]
        self._binary = binary
        self.api = KubeApi(layout.netns(CONTROL), layout.pki / "ca.crt", pki.ADMIN)
        """The API server, as its administrator sees it."""

    @classmethod
    def up(
        cls,
        *,
        name: str = "kube",
        shape: KubeShape | None = None,
        archives: Sequence[Path] = (),
        binary: Path | None = None,
        say: Say = _silent,
    ) -> Kube:
        """Make the cluster *name*; return it when its nodes are Ready and, with DNS, names are answered.

        *archives* are images that nodes have beside applications and pause; *binary* is what ``make
        kube`` built, by default the newest. *say* hears what is being done. Raises LabError with the
        end of the log of what failed, and then nothing of the cluster is left.
        """
        construction.check_machine()
        shape = shape or KubeShape()
        if not 1 <= shape.nodes <= MAX_NODES:
            raise LabError(f"--nodes: {shape.nodes}: allowed: 1 to {MAX_NODES}")
        state = state_file(name)
        if state.exists():
            raise LabError(f"{name}: is up, or half of it: nodeagent lab kube down --name {name}")
        found = (binary or built()).resolve()
        construction.sweep()
        folder, lock = construction.new_folder()
        kube = cls(KubeLayout(name, folder), shape, found)
        try:
            STATE_ROOT.mkdir(parents=True, exist_ok=True)
            write_json(state, {"folder": str(folder), "binary": str(found), **_fields(shape)})
            kube._make(archives, say)
        except OSError as error:
            kube.down()
            raise LabError(f"{name}: {error}") from error
        except BaseException:
            kube.down()
            raise
        finally:
            os.close(lock)
        return kube

    @classmethod
    def open(cls, name: str = "kube") -> Kube:
        """Return the cluster *name* that is there; raises LabError if there is none."""
        try:
            fields = json.loads(state_file(name).read_text())
        except FileNotFoundError:
            up = ", ".join(path.stem for path in sorted(STATE_ROOT.glob("*.json")))
            next_step = f", but {up}: say --name" if up else f": nodeagent lab kube up --name {name}"
            raise LabError(f"there is no cluster {name}{next_step}") from None
        folder = Path(fields.pop("folder"))
        binary = Path(fields.pop("binary"))
        return cls(KubeLayout(name, folder), KubeShape(**fields), binary)

    @staticmethod
    def remove(name: str = "kube") -> bool:
        """Remove the cluster *name*, also half of one; return whether there was any. Raises LabError
        if something stays.
        """
        if not state_file(name).exists():
            return False
        Kube.open(name).down()
        return True

    def down(self) -> None:
        """Remove this cluster with everything in it; raises LabError if something stays."""
        construction.destroy(self.layout)
        construction.forget(state_file(self.layout.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    def _make(self, archives: Sequence[Path], say: Say) -> None:
        layout = self.layout
        work = layout.folder / "work"
        work.mkdir()
        base = images.base(cache() / "cluster", say)
        given = seed.made(cache() / "cluster", [base, *archives], work, say)
        say("starting the control plane")
        construction.build(layout, self.nodes, self._binary, self.shape.cni, self.shape.max_pods)
        construction.start_control(layout, "etcd", config.etcd(layout))
        self._start("apiserver", config.api_server(layout))
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda own: self._start_node(given, own), self.nodes))
        self._wait(self.api.ready, "the API server is not ready", _API_SECONDS)
        layout.serving.touch()
        say("starting the nodes")
        self._start("controller-manager", config.controller_manager(layout))
        self._start("scheduler", config.scheduler(layout))
        if self.shape.dns:
            self._make_dns()
        self._wait(self._usable, "the nodes are not Ready", _NODES_SECONDS)
        if self.shape.dns:
            say("starting DNS")
            self._wait(self._resolves, "DNS is not ready", _DNS_SECONDS)

    def _start(self, component: str, flags: Sequence[str]) -> None:
        construction.start_control(self.layout, component, [str(self._binary), component, *flags])

    def _start_node(self, given: Path, own: KubeNode) -> None:
        seed.give(given, self.layout.node(own.name) / "containerd")
        construction.start_node(self.layout, own)

    def _make_dns(self) -> None:
        for each in config.dns_objects(self._binary):
            self.create(each)

    def create(self, document: Object) -> Draft:
        """Make the object *document*, of a kind that its plural ends in "s"; raises LabError."""
        group = document["apiVersion"]
        root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        namespace = document["metadata"].get("namespace")
        where = f"/namespaces/{namespace}" if namespace else ""
        return self.api.post(f"{root}{where}/{document['kind'].lower()}s", document)

    def _wait(self, condition: Callable[[], bool], otherwise: str, seconds: float) -> None:
        """Wait until *condition* holds; raises LabError as soon as a component has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if dead := next(self.ended(), None):
                raise LabError(f"{dead[0]}/{dead[1]} has ended; the end of its log:\n{self._tail(*dead)}")
            if time.monotonic() > deadline:
                raise LabError(f"{otherwise} after {seconds:g} s; what was said last:\n{self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def _components(self) -> Iterator[tuple[str, str]]:
        for component in CONTROL_PLANE:
            yield CONTROL, component
        for own in self.nodes:
            for component in NODE_COMPONENTS:
                yield own.name, component

    def ended(self) -> Iterator[tuple[str, str]]:
        """Yield (place, component) of what has ended, or has ended once and was started again."""
        for place, component in self._components():
            pid = construction.pid_file(self.layout, component)
            once = self.layout.log(place, component).with_suffix(".ended")
            if once.exists() or (place == CONTROL and pid.exists() and not _lives(int(pid.read_text()))):
                yield place, component

    def _tail(self, place: str, component: str) -> str:
        return tail(self.layout.log(place, component), _LINES)

    def _last_words(self) -> str:
        logs = sorted(self.layout.folder.glob("*/*.log"))
        return "\n".join(f"{path.parent.name}/{path.stem}: {tail(path, 2)}" for path in logs)

    def _usable(self) -> bool:
        """Say whether every node is Ready, and a pod in namespace default could be made."""
        with suppress(OSError):
            ready = [each["metadata"]["name"] for each in self.api.get("/api/v1/nodes")["items"] if is_node_ready(each)]
            account = self.api.get("/api/v1/namespaces/default/serviceaccounts/default")
            roots = self.api.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt")
            return len(ready) == len(self.nodes) and bool(account and roots)
        return False

    def _resolves(self) -> bool:
        found = self.api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
        return bool(found["status"].get("readyReplicas"))

    def kubectl(self, *arguments: str, stdin: str = "", seconds: float = _KUBECTL_SECONDS) -> str:
        """Return what kubectl prints; raises LabError when it fails, with what it says."""
        try:
            done = subprocess.run(
                self.kubectl_command(arguments),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"kubectl {' '.join(arguments)}: no end after {seconds:g} s") from None
        if done.returncode:
            raise LabError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def kubectl_command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs kubectl for this cluster."""
        command = [str(self._binary), "kubectl", "--kubeconfig", str(self.layout.admin), *arguments]
        return inside(self.layout.netns(CONTROL), command)

    def command(self, place: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs *argv* in a node, with everything that is the node's own, or
        in the network namespace of ``control``. Raises LabError if there is no such place.
        """
        if place == CONTROL:
            return inside(self.layout.netns(CONTROL), argv)
        groups = construction.node_groups(self.layout, self._node(place).name)
        delegated = [group / "init" if (group / "init").exists() else group for group in groups]
        first = (self.layout.node(place) / "pid").read_text()
        return ["sh", "-c", _ENTER, "sh", first, os.getcwd(), *map(str, delegated), "--", *argv]

    def _node(self, name: str) -> KubeNode:
        for own in self.nodes:
            if own.name == name:
                return own
        raise LabError(f"{name}: no node of this cluster: allowed: {', '.join(own.name for own in self.nodes)}")

    def load(self, archive: Path) -> None:
        """Give every node the images of *archive* (a tar file as buildah, podman or docker save it);
        raises LabError.
        """
        images.identity(archive)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda own: self._load(archive.resolve(), own.name), self.nodes))

    def _load(self, archive: Path, place: str) -> None:
        seed.load(archive, config.CONTAINERD, self.command(place, []))

    def log_file(self, target: str) -> Path:
        """Return the log of PLACE/COMPONENT; raises LabError that says which there are."""
        place, _, component = target.partition("/")
        path = self.layout.log(place, component)
        known = [f"{each.parent.name}/{each.stem}" for each in sorted(self.layout.folder.glob("*/*.log"))]
        if target not in known:
            raise LabError(f"{target}: no log of this cluster: allowed: {', '.join(known)}")
        return path

    def status(self) -> dict[str, list[dict[str, object]]]:
        """Return nodes, components and pods, as lists of rows."""
        ended = set(self.ended())
        components: list[dict[str, object]] = [
            {"place": place, "component": each, "state": "ended" if (place, each) in ended else "runs"}
            for place, each in self._components()
        ]
        try:
            nodes = self.api.get("/api/v1/nodes")["items"]
            pods = self.api.get("/api/v1/pods")["items"]
        except OSError as error:
            raise LabError(f"{self.layout.name}: the API server does not answer: {error}") from None
        return {"nodes": list(map(_node_row, nodes)), "components": components, "pods": list(map(_pod_row, pods))}


def _fields(shape: KubeShape) -> dict[str, object]:
    return {"nodes": shape.nodes, "cni": shape.cni, "dns": shape.dns, "max_pods": shape.max_pods}


def _lives(pid: int) -> bool:
    cgroup.reap(pid)
    return Path(f"/proc/{pid}").exists()


def _condition(document: Object, kind: str) -> bool:
    conditions = document.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def is_node_ready(document: Object) -> bool:
    """Say whether a Node is Ready."""
    return _condition(document, "Ready")


def _node_row(document: Object) -> dict[str, object]:
    addresses = [each["address"] for each in document["status"]["addresses"] if each["type"] == "InternalIP"]
    return {"name": document["metadata"]["name"], "ready": is_node_ready(document), "addresses": addresses}


def _pod_row(document: Object) -> dict[str, object]:
    status = document["status"]
    return {
        "namespace": document["metadata"]["namespace"],
        "name": document["metadata"]["name"],
        "node": document["spec"].get("nodeName", ""),
        "phase": status["phase"],
        "ready": _condition(document, "Ready"),
        "addresses": [each["ip"] for each in status.get("podIPs", [])],
    }
