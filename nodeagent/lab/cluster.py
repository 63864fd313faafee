"""A cluster on one machine: the Python side of ``nodeagent lab``.

    with Lab.up(["app.yaml"], name="mine", mode="nodeagent") as lab:
        print(lab.exec("deploy/web", ["curl", "-s", "http://api"]).stdout)

Nodes are network namespaces on a bridge, pods processes in namespaces and cgroups of their own. A
lab is on disk, below ``/run/nodeagent/lab/<name>``, and belongs to no process: another one may open
it, and whoever says ``down`` ends it.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from nodeagent.errors import LabError, PodError
from nodeagent.lab import construction, cri_log, injection, plan
from nodeagent.lab.agent import READY_SECONDS, Agent, merge
from nodeagent.lab.layout import MAX_NODES, STATE_ROOT, Layout, Node, Object, read_objects, write_json
from nodeagent.lab.processes import tail
from nodeagent.lab.programs import PATH
from nodeagent.lab.steady import Steadiness
from nodeagent.lab.view import View, faults, is_ready, owner
from nodeagent.mesh.membership import EVERY_POD, membership
from nodeagent.resources import objects
from nodeagent.resources.load import Document, load_documents, parse
from nodeagent.resources.model import CLUSTER_SCOPED, DeploymentResource, PodResource
from nodeagent.resources.pod import PodSpec
from nodeagent.vocabulary import ObjectKey

Mode = Literal["direct", "nodeagent", "sidecar", "envoy"]
"""Nothing between pods; an agent on every node; a classic sidecar in every pod, our own or Envoy,
with an agent that only gives out certificates.
"""
_KUBELET_SECONDS = 60.0
_SYNC_SECONDS = 180.0
_POLL_SECONDS = 0.02
_KUBELETS = ("Pod", "Deployment", "NetworkPolicy")
"""Kinds of which a kubelet has to be told."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What cannot be changed in a lab that is up."""

    nodes: int
    mode: Mode
    agent: Mapping[str, object]
    agent_in_kubepods: bool
    injection: Mapping[str, object] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the settings for messages."""
        place = "in" if self.agent_in_kubepods else "beside"
        injection = f", injection {json.dumps(self.injection)}" if self.injection else ""
        return (
            f"{self.nodes} nodes, mode {self.mode}, agent configuration {json.dumps(self.agent)} and {place} "
            f"kubepods{injection}"
        )


class Lab(View):
    """A lab that is up; see :class:`View` for ``pods``, ``exec``, ``popen``, ``status`` and what else can be asked."""

    def __init__(self, layout: Layout, shape: Shape) -> None:
        super().__init__(layout, [Node(index) for index in range(1, shape.nodes + 1)], shape.mode)
        self.shape = shape

    @classmethod
    def up(
        cls,
        files: Iterable[Path | str] = (),
        *,
        text: str = "",
        name: str = "lab",
        nodes: int = 2,
        mode: Mode = "direct",
        agent: Mapping[str, object] | None = None,
        agent_in_kubepods: bool = False,
        injection: Mapping[str, object] | None = None,
        wait_seconds: float = READY_SECONDS,
        keep: bool = False,
        root: Path = STATE_ROOT,
    ) -> Lab:
        """Make the lab *name*, or bring the one that is there up to what is asked, and apply
        resources to it.

        *files* are YAML files or folders, *text* is YAML itself. *mode* nodeagent runs an agent on
        every node, whose agent.yaml *agent* is merged into; *agent_in_kubepods* puts it below the
        captured cgroup, as a DaemonSet is. *mode* sidecar and envoy run what the injector makes of
        each pod, by *injection* (``native``, ``hold``, ``values`` of the template). Waits up to
        *wait_seconds* for the pods to be ready, and to stay it (0: does not wait). Raises
        ResourceError for wrong YAML and LabError; a lab that was not there before is then not there
        after either, unless all that went wrong is that a pod did not become ready, and *keep* is
        asked for.
        """
        construction.check_machine()
        if not 1 <= nodes <= MAX_NODES:
            raise LabError(f"--nodes: {nodes}: allowed: 1 to {MAX_NODES}")
        shape = Shape(nodes, mode, dict(agent or {}), agent_in_kubepods, dict(injection or {}))
        lab = cls(Layout(name, root), shape)
        documents = lab._load(files, text)
        plan.make(documents, (), (), lab._nodes, str)  # what is wrong in itself is said before anything is made
        with construction.locked(lab.layout):
            lab._bring_up(documents, wait_seconds, keep)
        return lab

    def _bring_up(self, documents: Sequence[Document], wait_seconds: float, keep: bool) -> None:
        """Make what is not there yet and apply *documents*; a lab that was not there is then taken
        away again where that fails.
        """
        layout = self.layout
        there = _recorded(layout)
        if there is not None and there != self.shape:
            raise LabError(
                f"lab {layout.name} is up with other settings ({there.describe()}); take it down first: nodeagent "
                f"lab down --name {layout.name}"
            )
        try:
            if there is None:
                construction.destroy(layout)
                construction.build(layout, self._nodes)
            self._start(wait_seconds)
            self._apply(documents, wait_seconds, keep)
            write_json(layout.cluster, asdict(self.shape))
        except PodError:
            if keep:
                write_json(layout.cluster, asdict(self.shape))
            elif there is None:
                construction.destroy(layout)
            raise
        except OSError as error:
            if there is None:
                construction.destroy(layout)
            raise LabError(f"lab {layout.name}: {error}") from error
        except BaseException:
            if there is None:
                construction.destroy(layout)
            raise

    @classmethod
    def open(cls, name: str = "lab", *, root: Path = STATE_ROOT) -> Lab:
        """Return the lab *name* that is up; raises LabError if there is none."""
        layout = Layout(name, root)
        shape = _recorded(layout)
        if shape is None:
            up = ", ".join(path.parent.name for path in sorted(root.glob("*/cluster.json")))
            raise LabError(
                f"there is no lab {name}{f', but {up}: say --name' if up else f': nodeagent lab up --name {name}'}"
            )
        return cls(layout, shape)

    @staticmethod
    def remove(name: str = "lab", *, root: Path = STATE_ROOT) -> bool:
        """Remove the lab *name*, also half of one; return whether there was anything. Raises
        LabError if something stays.
        """
        construction.check_machine()
        layout = Layout(name, root)
        with construction.locked(layout):
            return construction.destroy(layout)

    @staticmethod
    def all(*, root: Path = STATE_ROOT) -> list[Lab]:
        """Return the labs that are up, by name."""
        return [Lab.open(path.parent.name, root=root) for path in sorted(root.glob("*/cluster.json"))]

    def down(self) -> None:
        """Remove this lab with everything in it."""
        self.remove(self.layout.name, root=self.layout.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    def agent(self, node: str = "node1") -> Agent:
        """Return the agent of *node*; raises LabError if there is no such node or the mode is direct."""
        found = self._node(node)
        if found is None or self.shape.mode == "direct":
            raise LabError(f"{node}: no agent: this lab has {', '.join(self.nodes)} and its mode is {self.shape.mode}")
        group = self.group / found.name
        place = group / "kubepods/agent" if self.shape.agent_in_kubepods else group / "agent"
        overlay = self.shape.agent
        # it gives out certificates, and no program of its is in the way of a pod's traffic
        if self.mode in injection.TEMPLATES:
            overlay = merge({"redirect": {"enroll": "none", "cgroup": str(group / "empty")}}, overlay)
        return Agent(self.layout, found, place, overlay)

    def apply(
        self,
        files: Iterable[Path | str] = (),
        *,
        text: str = "",
        wait_seconds: float = READY_SECONDS,
        keep: bool = False,
    ) -> None:
        """Add or change resources; a pod whose spec changed is replaced.

        Raises ResourceError or LabError, and then nothing has changed, unless all that went wrong
        is that a pod did not become ready, and *keep* is asked for.
        """
        documents = self._load(files, text)
        with construction.locked(self.layout):
            self._apply(documents, wait_seconds, keep)

    def delete_pod(self, target: str, namespace: str = "default", *, grace_seconds: float | None = None) -> None:
        """End a pod as Kubernetes does (0: without SIGTERM) and return when it is gone. One of a
        Deployment comes back with the next apply.
        """
        pod = self.pod(target, namespace)
        with construction.locked(self.layout):
            _desired_file(self.layout, pod).unlink(missing_ok=True)
            self._sync(grace_seconds)

    def delete(self, *keys: ObjectKey, grace_seconds: float | None = None) -> None:
        """Remove objects by (kind, namespace, name), a Deployment with its pods. Raises LabError if
        one is not there, and then nothing has changed.
        """
        with construction.locked(self.layout):
            pods = self._desired_pods()
            paths = list(chain.from_iterable(self._files(key, pods) for key in keys))
            for path in paths:
                path.unlink(missing_ok=True)
            if any(kind in _KUBELETS for kind, _, _ in keys):
                self._sync(grace_seconds)

    def _files(self, key: ObjectKey, pods: Sequence[Object]) -> list[Path]:
        """Return what there is of an object on disk, where the pods that shall run are *pods*."""
        kind, namespace, name = key
        if kind in ("Pod", "Deployment"):
            here = [each for each in pods if each["metadata"]["namespace"] == namespace]
            found = [
                _desired_file(self.layout, each)
                for each in here
                if name == (owner(each) if kind == "Deployment" else each["metadata"]["name"])
            ]
        else:
            found = [
                path
                for path in (self.layout.object_file(kind, namespace, name),)
                if kind not in CLUSTER_SCOPED and path.exists()
            ]
        if not found:
            raise LabError(f"{kind} {namespace}/{name}: there is none that can be deleted in lab {self.name}")
        return found

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until every pod is ready (and, with agents, enrolled); raises LabError that says
        which is not, and why.
        """
        self._wait(self._desired_pods(), seconds)

    def _desired_pods(self) -> list[Object]:
        """Return the pods that the nodes shall run, node by node."""
        return list(chain.from_iterable(read_objects(self.layout.desired(node)) for node in self.nodes))

    def _load(self, files: Iterable[Path | str], text: str) -> list[Document]:
        """Return the resources asked for, with sidecars where the mode has them; raises ResourceError."""
        documents = load_documents(files) + (parse(text, "<text>") if text else [])
        if self.mode in injection.TEMPLATES:
            given = injection.settings(self.mode, self.layout, self.shape.injection)
            documents = injection.injected(documents, read_objects(self.layout.objects), given)
        _check_programs(documents)
        return documents

    def _start(self, wait_seconds: float) -> None:
        """Start what does not run: kubelets, then agents; where pods may take *wait_seconds*, each of these may too."""
        missing = [node for node in self._nodes if not _answers(self.layout.socket(node.name))]
        for node in missing:
            construction.start_kubelet(self.layout, node)
        deadline = time.monotonic() + max(_KUBELET_SECONDS, wait_seconds)
        for node in missing:
            while not _answers(self.layout.socket(node.name)):
                if time.monotonic() > deadline:
                    raise LabError(
                        f"{node.name}: the kubelet does not answer; the end of its "
                        f"log:\n{tail(self.layout.node(node.name) / 'kubelet.log')}"
                    )
                time.sleep(_POLL_SECONDS)
        if self.mode != "direct":
            agents = [self.agent(node) for node in self.nodes]
            for agent in agents:
                agent.start(wait_seconds=0)
            for agent in agents:
                agent.wait_ready(max(READY_SECONDS, wait_seconds))

    def _apply(self, documents: Sequence[Document], wait_seconds: float, keep: bool) -> None:
        there = [each for each in read_objects(self.layout.objects) if each["kind"] not in ("Pod", "Node")]
        pods = self._desired_pods()
        made = plan.make(documents, there, pods, self._nodes, lambda: str(uuid.uuid4()))
        undo: list[Callable[[], None]] = []
        try:
            for value in made.objects:
                metadata = value["metadata"]
                _replace(
                    self.layout.object_file(value["kind"], metadata.get("namespace", ""), metadata["name"]), value, undo
                )
            for pod in made.removed:
                _replace(_desired_file(self.layout, pod), None, undo)
            for pod in made.pods:
                _replace(_desired_file(self.layout, pod), pod, undo)
            self._sync(None)
            if wait_seconds:
                self._wait(made.pods, wait_seconds)
                self._sync(None)  # every node knows the ready endpoints when this returns
        except BaseException as error:
            if keep and isinstance(error, PodError):
                raise
            for step in reversed(undo):
                step()
            self._sync(0)
            raise

    def _sync(self, grace_seconds: float | None) -> None:
        """Have every kubelet make its pods what its folder says; raises LabError with the first fault."""
        faults = []
        connections = []
        for node in self.nodes:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_SYNC_SECONDS)
            connection.connect(str(self.layout.socket(node)))
            connection.sendall(json.dumps({"grace": grace_seconds}).encode() + b"\n")
            connections.append(connection)
        for node, connection in zip(self.nodes, connections, strict=True):
            with connection, connection.makefile() as answers:
                line = answers.readline()
            if not line:
                raise LabError(
                    f"{node}: the kubelet ended; the end of its log:\n{tail(self.layout.node(node) / 'kubelet.log')}"
                )
            if fault := json.loads(line)["error"]:
                faults.append(f"{node}: {fault}")
        if faults:
            raise LabError(faults[0])

    def _wait(self, pods: Iterable[Object], seconds: float) -> None:
        """Raises PodError."""
        deadline = time.monotonic() + seconds
        everyone = {_object_file(self.layout, pod): pod for pod in pods}
        waiting = set(everyone)
        steadiness = Steadiness()
        while waiting:
            now = time.monotonic()
            waiting = {path for path in waiting if not self._steady(path, steadiness, now, late=now > deadline)}
            # what has ended while others were waited for
            waiting = waiting or {path for path in everyone if not self._settled(_read(path))}
            failed = next(
                (path for path in waiting if (_read(path) or {}).get("status", {}).get("phase") == "Failed"), None
            )
            if failed or (waiting and now > deadline):
                path = failed or min(waiting)
                when = "" if failed else f"after {seconds:g} s: "
                others = [_name(everyone[each]) for each in sorted(waiting - {path})]
                raise PodError(when + self._complaint(path, everyone[path], others))
            if waiting:
                time.sleep(_POLL_SECONDS)

    def _steady(self, path: Path, steadiness: Steadiness, now: float, *, late: bool) -> bool:
        pod = _read(path)
        if pod is None or not self._settled(pod):
            steadiness.lost(path)
            return False
        return pod["status"]["phase"] == "Succeeded" or steadiness.lasts(path, pod, now, late=late)

    def _settled(self, pod: Object | None) -> bool:
        if pod is None:
            return False
        if pod["status"]["phase"] == "Succeeded":
            return True
        return is_ready(pod) and (
            not self._will_be_enrolled(pod) or (self.state / "enrolled" / pod["metadata"]["uid"]).exists()
        )

    def _will_be_enrolled(self, pod: Object) -> bool:
        """Say whether the agent of its node captures *pod*: by the agent's own rules, as they are in a lab."""
        if self.mode != "nodeagent" or not self.agent(pod["spec"]["nodeName"]).alive:
            return False
        namespace = _read(self.layout.objects / f"Namespace..{pod['metadata']['namespace']}.json")
        found = objects.parse(pod)
        known = None if namespace is None else objects.parse(namespace)
        assert isinstance(found, objects.PodObject)
        assert known is None or isinstance(known, objects.NamespaceObject)
        return membership(found, known, EVERY_POD, "", []).verdict == "captured"

    def _complaint(self, path: Path, manifest: Object, others: Sequence[str]) -> str:
        """Say what is wrong with a pod, and which *others* are waited for."""
        key = _name(manifest)
        more = ""
        if others:
            verb = "are" if others[1:] else "is"
            rest = ", …" if others[5:] else ""
            more = f" (nor {verb} {', '.join(others[:5])}{rest})"
        if not path.exists():
            return f"Pod {key} was not made{more}"
        pod = json.loads(path.read_text())
        if is_ready(pod) and not self._settled(pod):
            node = pod["spec"]["nodeName"]
            return (
                f"Pod {key} is ready but not enrolled{more}; the end of the log of {node}'s "
                f"agent:\n{tail(self.agent(node).log)}"
            )
        why, name = faults(pod)
        log = cri_log.tail(self.layout.logs(manifest) / name)
        return f"Pod {key} is not ready{more}: {why}; the end of its log:\n{log}"


def _recorded(layout: Layout) -> Shape | None:
    try:
        return Shape(**json.loads(layout.cluster.read_text()))
    except FileNotFoundError:
        return None


def _check_programs(documents: Iterable[Document]) -> None:
    """Raise ResourceError for a program that this machine does not have."""
    for document in documents:
        resource = document.resource
        if isinstance(resource, PodResource):
            _check_pod(document, resource.spec, "spec")
        elif isinstance(resource, DeploymentResource):
            _check_pod(document, resource.spec.template.spec, "spec.template.spec")


def _check_pod(document: Document, spec: PodSpec, path: str) -> None:
    for place, container in spec.placed():
        program = container.command[0]
        if "$(" in program or any(program.startswith(mount.mount_path) for mount in container.volume_mounts):
            continue  # known only in the container
        variables = {variable.name: variable.value for variable in container.env}
        if shutil.which(program, path=variables.get("PATH", PATH)) is None:
            raise document.error(
                f"{path}.{place}.command[0]",
                program,
                "a program of this machine (an absolute path, or a name in the container's PATH)",
            )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _read(path: Path) -> Object | None:
    try:
        found: Object = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found


def _object_file(layout: Layout, pod: Object) -> Path:
    return layout.object_file("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])


def _desired_file(layout: Layout, pod: Object) -> Path:
    return layout.desired(pod["spec"]["nodeName"]) / f"{pod['metadata']['uid']}.json"


def _replace(path: Path, value: Object | None, undo: list[Callable[[], None]]) -> None:
    """Write *value* to *path* (None: remove it) and add to *undo* what takes that back."""
    before = json.loads(path.read_text()) if path.exists() else None
    if value == before:
        return
    if value is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, value)
    undo.append(lambda: path.unlink(missing_ok=True) if before is None else write_json(path, before))
