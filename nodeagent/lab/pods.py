"""One pod on its node: sandbox, network, volumes, containers, and what its object says about them."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from nodeagent import links
from nodeagent.errors import LabError
from nodeagent.lab import cgroup, cri_log, linux, network, volumes
from nodeagent.lab.containers import RunningContainer
from nodeagent.lab.environment import ConfigMaps, command, environment
from nodeagent.lab.layout import LOG_BYTES, PAUSE_PID, Draft, Layout, Node, Object, write_json
from nodeagent.lab.log_keeper import LogKeeper
from nodeagent.lab.sandbox import PauseHome, Process, Started, start_pause
from nodeagent.lab.services import DOMAIN
from nodeagent.links import Links
from nodeagent.places.annotation import CGROUP, NETNS
from nodeagent.resources.pod import Container, PodSpec
from nodeagent.resources.proxies import SIDECARS


@dataclass(frozen=True, slots=True)
class Host:
    """The node, as its pods need it."""

    layout: Layout
    node: Node
    pods_cgroup: Path
    config_maps: Callable[[str], ConfigMaps]
    """Namespace -> its ConfigMaps."""
    keeper: LogKeeper


@dataclass(slots=True)
class RunningPod:
    """A pod that this node shall run. ``manifest`` is the lab's order: its object with uid, node and addresses."""

    host: Host
    manifest: Object
    pause: int = 0
    containers: list[RunningContainer] = field(default_factory=list)
    init_containers: list[RunningContainer] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _starting: asyncio.Task[None] | None = None
    _deleted: str = ""
    _started: str = ""
    _published: str = ""

    @property
    def spec(self) -> PodSpec:
        return PodSpec.model_validate_json(json.dumps(self.manifest["spec"]))

    @property
    def uid(self) -> str:
        return str(self.manifest["metadata"]["uid"])

    def describe(self) -> str:
        """Return the pod's name for messages."""
        return f"Pod {self.manifest['metadata']['namespace']}/{self.manifest['metadata']['name']}"

    @property
    def own_network(self) -> bool:
        return not self.manifest["spec"].get("hostNetwork", False)

    @property
    def netns(self) -> Path:
        metadata = self.manifest["metadata"]
        return self.host.layout.netns(
            f"{metadata['namespace']}.{metadata['name']}" if self.own_network else self.host.node.name
        )

    @property
    def link(self) -> str:
        """Return the name of the node's end of its link."""
        return f"veth{self.uid[:8]}"

    @property
    def cgroup(self) -> Path:
        return self.host.pods_cgroup / f"pod{self.uid}"

    @property
    def volumes(self) -> Path:
        return self.host.layout.volumes(self.host.node.name, self.uid)

    @property
    def logs(self) -> Path:
        return self.host.layout.logs(self.manifest)

    @property
    def sockets(self) -> Path:
        return self.host.layout.pod_sockets(self.host.node.name, self.uid)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(each["ip"] for each in self.manifest["status"]["podIPs"])

    async def start_sandbox(self) -> Started:
        """Begin the pod: cgroup, /etc files, pause process; what a crash left of it goes first."""
        await self.remove_leftovers()
        self.cgroup.mkdir(parents=True)
        etc = self.volumes / ".etc"
        etc.mkdir(parents=True)
        metadata = self.manifest["metadata"]
        spec = self.manifest["spec"]
        hostname = spec.get("hostname", metadata["name"])
        search = " ".join(f"{prefix}{DOMAIN}" for prefix in (f"{metadata['namespace']}.svc.", "svc.", ""))
        (etc / "resolv.conf").write_text(
            f"nameserver {self.host.node.addresses[0]}\nsearch {search}\noptions ndots:5\n"
        )
        own = "".join(f"{address}\t{hostname}\n" for address in self.addresses)
        (etc / "hosts").write_text(f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{own}")
        root = self.volumes / ".root"
        root.mkdir()
        return start_pause(PauseHome(hostname[:63], self.cgroup, etc, root, self.own_network))

    def settle_sandbox(self, started: Started) -> None:
        """Wait for the pause process and keep its netns under the pod's name; raises LabError."""
        self.pause = started.settle()
        if not self.own_network:
            return
        network.keep_namespace(self.netns, self.pause)

    async def link_to_node(self, node: Links) -> None:
        """Make the pod's link and the node's end of it, in the node's network namespace *node*; raises OSError."""
        if self.own_network:
            addresses = network.pair(self.addresses)
            await network.add_pod_link(node, self.host.node, self.link, self.netns, addresses)

    async def connect(self) -> None:
        """Set up the pod's own end of its network; raises OSError."""
        if self.own_network:
            await network.connect_pod(self.host.node, self.netns, network.pair(self.addresses))

    def start_containers(self) -> None:
        """Start every container and stay with it; raises LabError if a program or volume is not
        there.

        What has to wait for an init container or a postStart hook starts later; what goes wrong
        then is told by the pod's status.
        """
        spec = self.spec
        config_maps = self.host.config_maps(self.manifest["metadata"]["namespace"])
        sources = volumes.prepare(self.volumes, spec, config_maps, self.sockets)
        self._started = _now()
        self.containers = [self._container(container, spec, sources, config_maps) for container in spec.containers]
        self.init_containers = [
            self._container(container, spec, sources, config_maps) for container in spec.init_containers
        ]
        if self.init_containers or any(container.spec.lifecycle for container in self.containers):
            self._starting = asyncio.create_task(self._start_in_order())
            return
        for container in self.containers:
            container.start()
        self._tasks = [asyncio.create_task(container.supervise()) for container in self.containers]

    async def _start_in_order(self) -> None:
        """Start init containers one after the other, each when the one before has ended well (a
        native sidecar: has begun), then the others.

        Of those, too, one that has a postStart hook has to have begun first: that is how a proxy
        holds the application back.
        """
        for container in self.init_containers:
            native = container.spec.restart_policy is not None
            supervision = self._stay_with(container)
            if native:
                await container.begun.wait()
            else:
                await asyncio.wait([supervision])
                if container.exit_code:
                    return  # restartPolicy Never: the pod has failed
        supervisions = []
        for container in self.containers:
            supervisions.append(self._stay_with(container))
            if container.spec.lifecycle and container.spec.lifecycle.post_start:
                await container.begun.wait()
        await asyncio.wait(supervisions)  # not gather, which would cancel them with this task
        await self._end_sidecars(time.monotonic() + self.spec.termination_grace_period_seconds)

    async def _end_sidecars(self, deadline: float) -> None:
        """End the native sidecars, the last first: they outlive those they serve, and no longer."""
        for sidecar in reversed(self.init_containers):
            sidecar.policy = "Never"
            await sidecar.terminate(max(0.0, deadline - time.monotonic()))

    def _stay_with(self, container: RunningContainer) -> asyncio.Task[None]:
        try:
            container.start()
        except LabError as error:
            container.message = str(error)  # supervision tries again, as the pod's policy says
        task = asyncio.create_task(container.supervise())
        self._tasks.append(task)
        self.publish()
        return task

    def _container(
        self, container: Container, spec: PodSpec, sources: dict[str, Path], config_maps: ConfigMaps
    ) -> RunningContainer:
        variables = environment(container, self.manifest, config_maps)
        folder = self.logs / container.name
        log_bytes = self._log_bytes()
        bound = volumes.mounts(container, spec, sources)
        contexts = (container.security_context or spec.security_context, spec.security_context)
        process = Process(
            argv=command(container, variables),
            environment=variables,
            directory=container.working_dir,
            cgroup=self.cgroup / container.name,
            namespaces=self.pause,
            pause=self.pause,
            mounts=bound,
            user=_first(*(context.run_as_user for context in contexts)),
            group=_first(*(context.run_as_group for context in contexts)),
        )
        policy = spec.restart_policy
        if container in spec.init_containers:
            policy = container.restart_policy or ("Never" if policy == "Never" else "OnFailure")
        return RunningContainer(
            spec=container,
            process=process,
            output=partial(LogKeeper.plain, folder)
            if container.name in SIDECARS
            else partial(self.host.keeper.streams, folder, log_bytes),
            address=self.addresses[0],
            policy=policy,
            grace_seconds=spec.termination_grace_period_seconds,
            changed=self.publish,
        )

    def _log_bytes(self) -> int:
        text = self.manifest["metadata"].get("annotations", {}).get(LOG_BYTES, str(cri_log.MAX_BYTES))
        if not re.fullmatch("[1-9][0-9]{0,11}", text):
            raise LabError(f"annotation {LOG_BYTES}: {text!r}: allowed: at how many bytes its logs are rotated")
        return int(text)

    def update(self, manifest: Object) -> None:
        """Take over new labels and annotations, and what the ConfigMaps of its volumes hold now; raises LabError."""
        self.manifest = manifest
        volumes.prepare(self.volumes, self.spec, self.host.config_maps(manifest["metadata"]["namespace"]), self.sockets)
        self.publish()

    def publish(self) -> None:
        """Write the pod's object, if it is not what was written last."""
        value = self.render()
        text = json.dumps(value)
        if text != self._published:
            metadata = value["metadata"]
            write_json(self.host.layout.object_file("Pod", metadata["namespace"], metadata["name"]), value)
            self._published = text

    def render(self) -> Draft:
        """Return the pod's object as an API server would show it."""
        value: Draft = copy.deepcopy(dict(self.manifest))
        value["metadata"].setdefault("annotations", {}).update(
            {NETNS: str(self.netns), CGROUP: str(self.cgroup), PAUSE_PID: str(self.pause)}
        )
        if self._deleted:
            value["metadata"]["deletionTimestamp"] = self._deleted
        sidecars = [container for container in self.init_containers if container.spec.restart_policy]
        initialized = all(container in sidecars or container.finished for container in self.init_containers)
        everyone = (
            bool(self.containers)
            and all(container.ready for container in (*self.containers, *sidecars))
            and not self._deleted
        )
        conditions = {"PodScheduled": True, "Initialized": initialized, "ContainersReady": everyone, "Ready": everyone}
        unfinished = [
            each for each in (*self.init_containers, *self.containers) if not (each.finished and not each.exit_code)
        ]
        waiting = [each for each in unfinished if each.restarts or not each.ready]
        why = (
            {
                "reason": "ContainersNotReady",
                "message": "; ".join(f"container {each.spec.name}: {each.told()}" for each in waiting),
            }
            if waiting
            else {}
        )
        value["status"] |= {
            "phase": self._phase(),
            "startTime": self._started,
            "conditions": [
                {"type": name, "status": str(status), **(why if name == "ContainersReady" else {})}
                for name, status in conditions.items()
            ],
            "containerStatuses": [container.status() for container in self.containers],
        }
        if self.init_containers:
            value["status"]["initContainerStatuses"] = [container.status() for container in self.init_containers]
        return value

    def _phase(self) -> str:
        if any(
            container.finished and container.exit_code
            for container in self.init_containers
            if not container.spec.restart_policy
        ):
            return "Failed"
        if not self.containers or not any(
            container.pid or container.exit_code is not None for container in self.containers
        ):
            return "Pending"
        if not all(container.finished for container in self.containers):
            return "Running"
        return "Failed" if any(container.exit_code for container in self.containers) else "Succeeded"

    async def stop(self, grace_seconds: float | None) -> None:
        """End the pod as Kubernetes does: out of its Services, SIGTERM, after the grace period
        SIGKILL, then its object goes.
        """
        grace = self.spec.termination_grace_period_seconds if grace_seconds is None else grace_seconds
        if self.pause:
            self._deleted = _now()
            self.publish()
        if self._starting:
            self._starting.cancel()
        for container in (*self.containers, *self.init_containers):
            container.policy = "Never"
        if grace > 0:
            deadline = time.monotonic() + grace
            await asyncio.gather(*(container.terminate(grace) for container in self.containers))
            await self._end_sidecars(deadline)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.remove_leftovers()
        self.host.keeper.gone(self.logs)
        metadata = self.manifest["metadata"]
        self.host.layout.object_file("Pod", metadata["namespace"], metadata["name"]).unlink(missing_ok=True)

    async def remove_leftovers(self) -> None:
        """Remove processes, cgroup, link, netns and volumes. The link would go with the netns, but
        later, and its routes would be in the way.
        """
        cgroup.remove(self.cgroup, parent=True)
        if self.own_network and self.netns.exists():
            with suppress(OSError):  # it was not there yet
                async with links.opened() as node:
                    await node.delete(self.link)
            linux.drop_namespace(self.netns)
        shutil.rmtree(self.volumes, ignore_errors=True)
        self.pause = 0


def _first(*values: int | None) -> int:
    """Return the first of *values* that was given, 0: none was."""
    return next((value for value in values if value is not None), 0)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
