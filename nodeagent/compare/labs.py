"""Brings the modes up, each in a lab of its own (where two cannot disturb each other, in one), and
takes everything down again.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from nodeagent.compare import envoy, manifests
from nodeagent.compare.calls import GRPC
from nodeagent.compare.hops import EnvoyHop, HaproxyHop
from nodeagent.compare.load import CompareError, Workload
from nodeagent.compare.manifests import BYPASS, BYPASSED, GUARDED, PLAIN
from nodeagent.compare.meshes import (
    BYPASS_TARGETS,
    Bypass,
    EnvoySidecars,
    Joined,
    KernelPathMode,
    NodeAgent,
    OwnSidecars,
)
from nodeagent.compare.modes import TARGETS, CallPath, Direct, Mode
from nodeagent.errors import NodeagentError
from nodeagent.lab import Lab
from nodeagent.lab.cluster import Mode as LabMode

POLICIES: Final = (100, 10_000)
"""How many policies there are in the cluster, in variants of the agent."""
WAIT_SECONDS: Final = 90.0
"""For a mode to come up, unless a comparison says another time."""
_KERNEL: Final = {"telemetry": {"accessLog": {"path": ""}}, "proxy": {"clientCertHeader": "ignored"}}
"""What lets HTTP take the kernel path: nobody asks for the log, and no application reads who its
client is from a header.
"""
_JOINING: Final = {"redirect": {"bypass": "asked"}}
"""Joins sockets without proof that no application can tell: this comparison's programs do nothing that could."""


@dataclass(frozen=True, slots=True)
class LabNeeds:
    """What a comparison needs of its labs: the workloads that pods must serve, and whose YAML."""

    workloads: Sequence[Workload]
    variants: bool = False
    """Also what is compared with a mode's usual settings."""
    files: Sequence[str] = ()
    """The user's own YAML instead of ours."""
    target: CallPath | None = None
    """Who asks what there."""
    wait: float = WAIT_SECONDS
    """Seconds that each mode may take to come up."""

    @property
    def targets(self) -> Mapping[Workload, CallPath]:
        """Who asks whom, by workload."""
        return {"manifest": self.target} if self.target else TARGETS

    def of(self, *served: Workload) -> tuple[Workload, ...]:
        """Return those of the workloads *served*, which a mode can serve, that the comparison measures."""
        return tuple(workload for workload in served if workload in self.workloads)

    def text(self, *, guarded: bool = True) -> str:
        """Return the YAML that a lab runs; empty where the user's own ``files`` are used.
        *guarded*: with the namespace of ``http-authz``, if that is measured.
        """
        if self.files:
            return ""
        parts = [manifests.workload(PLAIN, calls=bool(GRPC.intersection(self.workloads)))]
        if "chain5" in self.workloads:
            parts.append(manifests.chain(PLAIN))
        if guarded and "http-authz" in self.workloads:
            parts.append(manifests.workload(GUARDED) + manifests.policies(GUARDED))
        return "\n---\n".join(part.strip("-\n ") for part in parts)

    def up(
        self,
        text: str,
        name: str,
        mode: LabMode,
        *,
        agent: Mapping[str, object] | None = None,
        injection: Mapping[str, object] | None = None,
    ) -> Lab:
        """Return the lab *name* of *mode*, which runs *text*, or the user's own files where that is empty."""
        files = () if text else self.files
        return Lab.up(files, text=text, name=name, mode=mode, agent=agent, injection=injection, wait_seconds=self.wait)


@dataclass(frozen=True, slots=True)
class Setup:
    """A lab, the modes that are measured in it, and what makes them; ``variant``: it is one of modes
    that other setups bring up as well, and is made only where variants are wanted.
    """

    lab: str
    modes: Sequence[str]
    make: Callable[[str, LabNeeds, frozenset[str]], list[Mode]]
    """Lab's name, what is wanted, names of the modes wanted."""
    variant: bool = False


def _direct(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    lab = wanted.up(wanted.text(guarded=False), name, "direct")
    served = wanted.of(*[workload for workload in _EVERYTHING if workload != "http-authz"])
    hops = [] if wanted.files else [HaproxyHop(lab), EnvoyHop(lab)]
    return [Direct(lab, workloads=served, targets=wanted.targets), *hops]


_EVERYTHING: Final[tuple[Workload, ...]] = (
    "http",
    "http-authz",
    "tcp",
    "tcp-churn",
    "chain5",
    "cross-node",
    "cross-node-churn",
    "bulk",
    "bulk-cross-node",
    "h2",
    "h2-many",
    "h2-cross-node",
    "h2-bulk",
    "grpc",
    "grpc-stream",
    "manifest",
)


def _nodeagent(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    return [
        NodeAgent(
            wanted.up(wanted.text(), name, "nodeagent"),
            workloads=wanted.of(*_EVERYTHING),
            targets=wanted.targets,
        )
    ]


def _workers(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    lab = wanted.up(manifests.workload(PLAIN), name, "nodeagent", agent={"proxy": {"workers": 2}})
    return [NodeAgent(lab, "2 workers", workloads=wanted.of("http", "cross-node"), connections=(32,))]


def _network(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    lab = wanted.up(manifests.workload(PLAIN), name, "nodeagent", agent={"redirect": {"delivery": "network"}})
    return [NodeAgent(lab, "over the network", workloads=wanted.of("http", "tcp", "tcp-churn"))]


def _kernel(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    text = wanted.text(guarded=False)
    if "nodeagent-bypass" in modes:
        text += "\n---\n" + manifests.workload(BYPASSED, pod_annotations=BYPASS)
    lab = wanted.up(text, name, "nodeagent", agent=_KERNEL | _JOINING)
    served = wanted.of("http", "tcp", "tcp-churn", "chain5", "bulk", "manifest")
    made: list[Mode] = [KernelPathMode(lab, workloads=served, targets=wanted.targets)]
    if "nodeagent-bypass" in modes:
        made.append(Bypass(lab, workloads=wanted.of("http", "bulk"), targets=BYPASS_TARGETS))
    return made


def _joined(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    chain = manifests.chain(PLAIN, pod_annotations=BYPASS) if "chain5" in wanted.workloads else ""
    lab = wanted.up(manifests.workload(PLAIN, pod_annotations=BYPASS) + chain, name, "nodeagent", agent=_JOINING)
    return [Joined(lab, "proxy", workloads=wanted.of("http", "chain5"))]


def _sidecar(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    return [
        OwnSidecars(
            wanted.up(wanted.text(), name, "sidecar"), workloads=wanted.of(*_EVERYTHING), targets=wanted.targets
        )
    ]


TCP_PORTS: Final = "8081,5201"
"""Envoy without a control plane knows no Service, so it is told which ports are declared TCP."""


def _envoy(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    envoy.binary()
    lab = wanted.up(
        wanted.text(),
        name,
        "envoy",
        injection={"values": {} if wanted.files else {"tcpPorts": TCP_PORTS}},
    )
    return [EnvoySidecars(lab, workloads=wanted.of(*_EVERYTHING), targets=wanted.targets)]


def _one_thread(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
    envoy.binary()
    lab = wanted.up(
        manifests.workload(PLAIN), name, "envoy", injection={"values": {"tcpPorts": TCP_PORTS, "concurrency": 1}}
    )
    return [EnvoySidecars(lab, "1 thread", workloads=wanted.of("http", "tcp-churn"), connections=(32,))]


def _policies(count: int) -> Callable[[str, LabNeeds, frozenset[str]], list[Mode]]:
    def make(name: str, wanted: LabNeeds, modes: frozenset[str]) -> list[Mode]:
        lab = wanted.up(manifests.workload(GUARDED) + manifests.policies(GUARDED, count), name, "nodeagent")
        return [NodeAgent(lab, f"{count:,} policies", workloads=wanted.of("http-authz"), connections=(32,))]

    return make


SETUPS: Final = (
    Setup("compare", ("direct", "haproxy", "envoy-hop"), _direct),
    Setup("compare-agent", ("nodeagent",), _nodeagent),
    Setup("compare-kernel", ("nodeagent-kernel", "nodeagent-bypass"), _kernel),
    Setup("compare-joined", ("nodeagent-bypass",), _joined),
    Setup("compare-sidecar", ("sidecar",), _sidecar),
    Setup("compare-envoy", ("envoy",), _envoy),
    Setup("compare-workers", ("nodeagent",), _workers, variant=True),
    Setup("compare-network", ("nodeagent",), _network, variant=True),
    Setup("compare-envoy-one", ("envoy",), _one_thread, variant=True),
    *(Setup(f"compare-policies-{count}", ("nodeagent",), _policies(count), variant=True) for count in POLICIES),
)
MODES: Final = tuple(dict.fromkeys(itertools.chain.from_iterable(each.modes for each in SETUPS if not each.variant)))
"""Every mode's name, in the order in which they are told."""
Missing = dict[str, str]
"""``what`` is not in the results, and ``why``."""


@contextmanager
def alone(names: Sequence[str]) -> Iterator[None]:
    """Keep other comparisons off this machine, and remove the labs *names*: those that a crash
    left, and afterwards those of this run.

    Raises CompareError if another one is running.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            lock.bind(
                "\0nodeagent-compare"
            )  # only one process of the network namespace can hold it; it goes with the process
        except OSError:
            raise CompareError("another comparison is running on this machine: they would disturb each other") from None
        for name in names:
            Lab.remove(name)
            stack.callback(Lab.remove, name)
        yield


def bring_up(
    names: Sequence[str], wanted: LabNeeds, missing: list[Missing], progress: Callable[[str], None]
) -> list[Mode]:
    """Return the modes *names* that came up, with their variants; those that did not go to
    *missing*, and nothing of them stays.
    """
    chosen = frozenset(names)
    made = []
    for setup in SETUPS:
        here = chosen.intersection(setup.modes)
        if not here or (setup.variant and not wanted.variants):
            continue
        progress(
            "setting up "
            f"{', '.join(name for name in setup.modes if name in here)}{' (a variant)' if setup.variant else ''}"
        )
        try:
            found = setup.make(setup.lab, wanted, chosen)
        except (NodeagentError, OSError) as error:
            Lab.remove(setup.lab)
            part = f", a variant ({setup.lab})" if setup.variant else ""
            missing += [
                {"what": name + part, "why": f"did not come up: {error}"} for name in setup.modes if name in here
            ]
            continue
        for mode in found:
            if mode.name not in chosen or not set(mode.workloads) <= set(wanted.workloads) or not mode.workloads:
                continue
            try:
                mode.start()
                made.append(mode)
            except (NodeagentError, OSError) as error:
                missing.append({"what": mode.describe(), "why": f"did not come up: {error}"})
    return sorted(made, key=lambda mode: (MODES.index(mode.name), mode.variant))
