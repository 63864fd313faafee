"""What control stands on: what tells it the cluster's state and where pods run, and what it tells the
other nodes by. A lab or tests have a folder for that, a cluster its API server and container runtime.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from nodeagent.config import AgentConfig, Kubernetes
from nodeagent.control.concern import Concern, Resigning
from nodeagent.errors import ConfigError, KernelError
from nodeagent.places import cgroups
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.places.own_addresses import own_addresses
from nodeagent.places.place import Places
from nodeagent.redirect.netns import PodNetns, inside, own_cookie
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.marks import DirectoryMarks
from nodeagent.resources.objects import PodObject
from nodeagent.resources.source import Marks, Source
from nodeagent.services.as_pods import Machine, Network
from nodeagent.services.follower import Services
from nodeagent.services.objects import own_files
from nodeagent.services.source import ServiceSource
from nodeagent.services.units import Systemctl
from nodeagent.vocabulary import Address, PodUid

if TYPE_CHECKING:
    from nodeagent.control.start_gate import StartGate

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Beside(Concern, Resigning, Protocol):
    """A concern that only some footing has."""


class TellsCluster(Protocol):
    """Who tells a cluster how the whole of control fares."""

    def told_by(
        self,
        lacking: Callable[[], list[str]],
        pods: Callable[[], Iterable[Mapping[str, object]]],
        succession: Callable[[bool], None],
    ) -> None:
        """All of control is there: *lacking* says what keeps it from being ready, *pods* returns the
        rows of captured pods, *succession* is to hear whether another agent is coming to the node.
        """

    async def forsaken(self) -> None:
        """Wait until nobody has the node that this daemon gave up, nor can, as long as this one is there."""


@dataclass(frozen=True, slots=True)
class Footing:
    """What of control depends on where the agent runs."""

    source: Source
    places: Places
    marks: Marks
    concerns: tuple[Beside, ...] = ()
    """What runs beside them."""
    pod_faults: Callable[[PodUid], list[str]] = lambda _: []
    """Say why a pod of this node has no place that can be used, though it runs."""
    warnings: Callable[[], list[str]] = list
    """Say what is known no better than it was."""
    cluster: tuple[TellsCluster, ...] = ()
    gates: tuple[StartGate, ...] = ()
    """Those of *concerns* that the runtime asks before it starts a container."""
    logs: Callable[[PodObject], tuple[Path, ...]] = lambda _: ()
    """Return the folders of logs of the service of the machine that a pod is; none for other pods."""
    unit: Callable[[PodObject], str] = lambda _: ""
    """Return what systemd calls that service; empty for other pods."""


def open_footing(config: AgentConfig) -> Footing:
    """Return what *config* says; wants a running loop. Raises ConfigError."""
    if config.kubernetes is not None:
        return _cluster(config, config.kubernetes)
    assert config.source is not None  # checked as the configuration was read
    source = DirectorySource(config.source, config.resources, config.runtime_directory / "last-good")
    marks = DirectoryMarks(config.source)
    if not config.services and next(own_files(config.source, config.node), None) is None:
        return Footing(source, AnnotationPlaces(), marks, warnings=partial(_unread, source, config.source))
    services = Services(config.services, this_machine(config), config.source, Systemctl(), network_in)
    return Footing(
        ServiceSource(source, services.look),
        services,
        marks,
        (services,),
        warnings=services.warnings,
        logs=services.logs,
        unit=services.unit,
    )


def _unread(source: DirectorySource, path: Path) -> list[str]:
    """Say what of the folder *path* may hold pods and is not read: it may be another one than is meant."""
    what = source.unread_pods()
    return [f"source: {path}: {each} cannot be read: no pod of it is known; is this the folder?" for each in what]


def this_machine(config: AgentConfig) -> Machine:
    """Return what tells this machine's services from others'. Raises ConfigError, OSError."""
    mounts = (mount.point for mount in cgroups.cgroup2_mounts(cgroups.own_mountinfo()))
    top = next((point for point in mounts if config.redirect.cgroup.is_relative_to(point)), None)
    if top is None:
        raise ConfigError(f"redirect.cgroup: {config.redirect.cgroup} is in no cgroup2 hierarchy that is mounted here")
    return Machine(config.node, uuid.UUID(BOOT_ID.read_text().strip()), top, own_cookie(), config.redirect.cgroup)


def network_in(namespace: Path) -> Network:
    """Return the network namespace whose file is *namespace*. Raises KernelError."""
    with closing(PodNetns.open(namespace)) as opened:
        file = os.fstat(opened.fd)
        return Network(opened.cookie, addresses_in(Path(f"/proc/self/fd/{opened.fd}")), (file.st_dev, file.st_ino))


def addresses_in(namespace: Path) -> frozenset[Address]:
    """Return the addresses of the network namespace whose file is *namespace*. Raises KernelError."""
    try:
        with closing(PodNetns.open(namespace)) as opened, inside(opened.fd):
            return own_addresses()
    except OSError as error:
        raise KernelError(f"{namespace}: cannot be entered: {error.strerror}") from None


def _cluster(config: AgentConfig, kubernetes: Kubernetes) -> Footing:
    # Imported only where a cluster is: it brings gRPC and TLS for the runtime and the API server.
    from nodeagent.control.cluster_side import ClusterSide
    from nodeagent.control.csi_volumes import CsiVolumes
    from nodeagent.control.start_gate import StartGate
    from nodeagent.kube.access import open_access
    from nodeagent.kube.client import KubeClient
    from nodeagent.kube.node_status import NodeStatusMarks
    from nodeagent.kube.snapshot import SnapshotFile
    from nodeagent.kube.source import KubernetesSource
    from nodeagent.places.cri import CriPlaces
    from nodeagent.places.runtime import CriRuntime, find_socket
    from nodeagent.places.sandbox import SandboxReader
    from nodeagent.redirect.host_mount import HostMounts

    client = KubeClient(open_access(kubernetes.kubeconfig), keeps=True)
    runtime = CriRuntime(find_socket(kubernetes.runtime))
    places = CriPlaces(runtime, SandboxReader(config.redirect.cgroup).read, network=addresses_in)
    kept = SnapshotFile(kubernetes.state_directory or config.runtime_directory, config.node)
    source = KubernetesSource(client, config.node, places, kept)
    marks = NodeStatusMarks(client, config.node, source.statuses, source.mark, here=source.here)
    volumes = CsiVolumes(config.node, kubernetes.kubelet, config.runtime_directory, HostMounts())

    def warnings() -> list[str]:
        return [*source.warnings(), *places.warnings()]

    side = ClusterSide(client, source, places, marks, kept, PodUid(os.environ.get("POD_UID", "")))
    gate = StartGate(kubernetes.nri, places.made, places.faults_of)
    return Footing(source, places, marks, (side, volumes, gate), places.faults_of, warnings, (side,), (gate,))
