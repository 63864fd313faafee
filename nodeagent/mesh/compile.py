"""Kubernetes objects → the snapshot's entries. Pure and incremental: a change costs what it
touches.

Theory of operation
-------------------

The result depends on the objects alone, never on the order in which they came: that is what lets
two agents agree, and what the tests hold it to. Objects are kept as they are; around them stand
indexes that answer in both directions who is concerned by whom (labels and selectors, addresses and
the pods that claim them, policies and the workloads that they select). A batch of changes runs in
two steps:

    a change ──▶ objects and indexes ──▶ dirty sets ─────────▶ entries made anew ──▶ delta
                 (cluster_state.py)      (whom it touches,     (_recompile)          (what came out
                                         before and after)                           different)

Marking happens twice, with the indexes as they were and as they are: a pod that leaves a Service is
as much concerned as one that joins it. The dirty sets (``Touched``)
are told apart by what has to be made anew:

    pods       the workload's entry, and whether it is to be enrolled here
    modes      only what policies and NetworkPolicies say of an entry that is otherwise good
    services   a Service's entry, with its endpoints
    policies   policies' own entries: they are in the snapshot while a local pod uses them

Who touches whom: a pod its Services, the pods that claim one of its addresses, and those Services;
a Service the pods that it selects; an EndpointSlice its Service, and a pod the Services that have
an endpoint at its address; a policy the pods that it is for, on other nodes only where it is a
PeerAuthentication or a NetworkPolicy; a Namespace all its pods. It
goes no further: no entry is made of another object's entry.

Several pods may claim one address: for a while, as when a new one was given an ended one's, or because
a status lies. Who has it: ``ClusterState._holder``.
Two Services may target one port: the oldest decides the protocol, as in Istio.

What cannot be made (an object nobody foresaw) keeps its last entry, is named in ``faults``, and
never takes the rest of the batch along. An entry that came out equal to its last is no change, so a
worker hears only of what differs for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar, cast

from nodeagent.errors import IdentityError, shown
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.istio import ROOT_NAMESPACE
from nodeagent.memory import uncollected
from nodeagent.mesh import policy_notes, rules
from nodeagent.mesh.alike import Alike
from nodeagent.mesh.cluster_state import ClusterState, NamedPort
from nodeagent.mesh.entries import (
    UNREAD,
    Delta,
    Endpoint,
    Entry,
    Service,
    ServicePort,
    UnreadPolicies,
    Workload,
)
from nodeagent.mesh.local import (
    EXCLUDE_INBOUND,
    AskingPod,
    LocalPod,
    bypass,
    excluded_ports,
    finished,
    has_sidecar,
    path_setting,
    takes_hbone,
)
from nodeagent.mesh.membership import EVERY_POD, MembershipRules
from nodeagent.mesh.node_pods import NodePods
from nodeagent.mesh.pod_ports import PodPorts
from nodeagent.mesh.policies import Deciding, MtlsModes, entry_key, names, refused_row
from nodeagent.mesh.selection import NamespacedName, Postings
from nodeagent.mesh.service_ports import Translated, ports_of
from nodeagent.places.place import Places
from nodeagent.policy.mesh_settings import NOBODY, ProviderNames
from nodeagent.policy.model import AuthorizationPolicy, MtlsMode
from nodeagent.resources import objects
from nodeagent.resources.changes import AnyChange, Change, Refused
from nodeagent.resources.security import Policy, Spec
from nodeagent.steps import Steps, drained
from nodeagent.vocabulary import Address, ObjectKey

MANY: Final = 1000
"""Changes of a batch that is worth a collector that stands still meanwhile."""
_Made = TypeVar("_Made", Workload, Service)
_Reached = tuple[objects.PodObject, tuple[Address, ...]]
"""A pod, and the addresses at which it is reached."""
log = logging.getLogger("nodeagent.mesh")


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Pods that are endpoints of a Service, and of each with the same that they *rest on*."""

    rests_on: Hashable
    ready: list[_Reached]
    ending: list[_Reached]
    """Those that serve on while they end."""


@dataclass(slots=True)
class _Fresh:
    """What is made in one batch."""

    used: set[str]
    """Keys of entries of policies of which somebody uses another one now, or that are others."""
    entries: dict[str, Entry] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    """Keys whose entries are gone, unless they are in ``entries``."""

    def put(self, key: str, entry: Entry | None) -> None:
        """*entry* stands under *key*, or nothing any more."""
        if entry is None:
            self.stale.add(key)
        else:
            self.entries[key] = entry


@dataclass(frozen=True, slots=True)
class _Said:
    """What policies say of a pod."""

    modes: MtlsModes
    policies: tuple[str, ...]
    """Keys of entries."""
    network: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one page of policies asks of pods: of each once, however many policies are for it."""

    ports: PodPorts
    deciding: Deciding


class Mesh:
    """The cluster as *node* of *trust_domain* sees it.

    *places* knows where this node's pods run; without it none is captured, and none is given
    sockets. *aliases* are other names of the trust domain.
    *default_mtls* is in force where no PeerAuthentication says otherwise; policies of
    *root_namespace* are for the whole mesh. *membership* tells which pods of the node are in it, *scrapes* whether
    pods' metrics are open to everybody where they declare them. Policies may ask *providers*.
    """

    def __init__(
        self,
        node: str,
        trust_domain: str,
        places: Places | None = None,
        *,
        aliases: tuple[str, ...] = (),
        default_mtls: MtlsMode = "PERMISSIVE",
        root_namespace: str = ROOT_NAMESPACE,
        membership: MembershipRules = EVERY_POD,
        scrapes: bool = True,
        providers: ProviderNames = NOBODY,
    ) -> None:
        self._node = node
        self._trust_domain = trust_domain
        self._aliases = aliases
        self._places = places
        self._scrapes = scrapes
        self._providers = providers
        self._state = ClusterState(node, default_mtls, root_namespace, self._runs_here)
        self.node_pods = NodePods(node, trust_domain, places, self._state, membership, root_namespace)
        """The pods of this node, as they are after the last :meth:`apply`."""
        self._users: Postings[str, NamespacedName] = Postings()
        self._using: dict[NamespacedName, tuple[str, ...]] = {}
        self._entries: dict[str, Entry] = {}
        self._made: dict[NamespacedName, str] = {}
        self._translated = Translated()
        self._alike = Alike()
        """What many of one batch have in common."""
        self.faults: dict[str, str] = {}
        """Objects that could not be taken in or compiled, and why: their last entries stay."""

    def apply(self, changes: Iterable[AnyChange]) -> Delta:
        """Take *changes* in and return the entries that differ for it."""
        return drained(self.steps(changes))

    def steps(self, changes: Iterable[AnyChange]) -> Steps[Delta]:
        """Do the same step by step, one object each. Between two of them others may have a turn, but for
        another :meth:`apply`: until the last one, what is told of objects is of neither before nor after.
        """
        changes = list(changes)
        with uncollected() if len(changes) > MANY else nullcontext():
            for change in changes:
                self._take(change)
                yield
            return (yield from self._recompile())

    def local_pods(self) -> tuple[LocalPod, ...]:
        """Return the pods of this node that shall be enrolled, as they are after the last :meth:`apply`."""
        return tuple(self.node_pods.captured().values())

    def asking_pods(self) -> tuple[AskingPod, ...]:
        """Return the pods of this node that ask for the Workload API, as they are after the last :meth:`apply`."""
        return tuple(self.node_pods.asking().values())

    def node_addresses(self, node: str = "") -> tuple[Address, ...]:
        """Return the InternalIPs of *node* (this one by default), empty while it is not known."""
        found = self._state.nodes.get(node or self._node)
        return found.addresses if found else ()

    def entries(self) -> Delta:
        """Return the whole snapshot as a delta to an empty one: for a worker that starts."""
        return Delta(tuple(self._entries[key] for key in sorted(self._entries)))

    def policies(
        self, refused: Sequence[Refused] = (), known: Callable[[str], Entry | None] = lambda _: None
    ) -> list[dict[str, object]]:
        """Return a row for each policy and for each of the *refused* documents, for ``nodeagent get policies``;
        *known* returns what was fetched for policies, by the entry's key.
        """
        local = self._governed_here()
        pods = _Asked(
            PodPorts(self._state, lambda key: self._entries.get(self._made[key])), self._state.policies.decisions()
        )
        others = dict(enumerate(refused))
        by_key: dict[ObjectKey, list[int]] = {}
        for number, each in others.items():
            by_key.setdefault((each.kind, each.namespace, each.name), []).append(number)
        rows = []
        for key, policy in sorted(self._state.policies.known.items()):
            row = self._row(key, self._state.affected(key) & local, known, pods)
            told = (each for each in by_key.get(key, ()) if _is_told_by(others[each], policy, str(row["file"])))
            own = others.pop(next(told, -1), None)
            if own is not None and own.stays:
                row |= {"state": f"last good one in force; refused: {own.error}"}
            rows.append(row)
        return rows + [refused_row(each) for each in others.values()]

    def unanswered(self, known: Callable[[str], Entry | None]) -> list[str]:
        """Return, in words, which policies of this node's pods ask somebody who cannot answer; *known* is as above."""
        local = self._governed_here()
        found = []
        for key, policy in sorted(self._state.policies.known.items()):
            why = policy_notes.unanswered(policy.spec, self._providers, known)
            if why and self._state.affected(key) & local:
                found += [f"{policy.kind} {policy.namespace}/{policy.name}: {each}" for each in why]
        return found

    def _governed_here(self) -> set[NamespacedName]:
        return {
            key
            for key, pod in self._state.pods.items()
            if pod.node == self._node and not pod.host_network and key in self._made
        }

    def _row(
        self, key: ObjectKey, local: Set[NamespacedName], known: Callable[[str], Entry | None], pods: _Asked
    ) -> dict[str, object]:
        """Return the row of the policy *key*, which is for the pods *local* of this node; *pods* remembers them."""
        row = self._state.policies.row(key, local, pods.deciding)
        policy = self._state.policies.known[key]
        notes = policy_notes.never_matched(policy.spec, (self._trust_domain, *self._aliases))
        if str(row["state"]).startswith("in force"):
            strange = self._state.strange_ports(key) or pods.ports.undeclared(policy, local)
            notes = [*([strange] if strange else []), *notes]
            notes += policy_notes.unanswered(policy.spec, self._providers, known)
        row["state"] = "; ".join([str(row["state"]), *notes])
        if fault := self.faults.get(Change(*key, None).title):
            row["state"] = f"its last change could not be taken in ({fault}); before it: {row['state']}"
        return row

    def left_open(self) -> list[str]:
        """Return, in words, the wrong documents that nothing stands in for, as they may be for the whole mesh."""
        return self._state.policies.left_open()

    def _runs_here(self, pod: objects.PodObject) -> bool:
        return pod.node == self._node and self._places is not None and self._places.of(pod) is not None

    # -- what is made of it --

    def _take(self, change: AnyChange) -> None:
        """Take one change in: one that nobody foresaw never takes the rest of its batch along."""
        whose = change.title
        try:
            self._state.take(change)
        except Exception as error:
            self.faults[whose] = f"{type(error).__name__}: {shown(str(error))}"
            log.error("%s cannot be taken in (%s); the others are", whose, self.faults[whose], exc_info=error)
        else:
            self.faults.pop(whose, None)

    def _recompile(self) -> Steps[Delta]:
        touched = self._state.touched
        touched.pods |= self.node_pods.concerned(touched.pods)
        made = _Fresh(used={entry for key in touched.policies if (entry := entry_key(*key))})
        self._alike.clear()
        self._translated.made.clear()
        yield from self._govern(touched.modes - touched.pods, made)
        yield from self._make_pods(touched.pods, made)
        yield from self._make_services(touched.services, made)
        made.used |= self._translated.made
        for entry in made.used:
            used = bool(self._users.get(entry))
            made.put(entry, self._state.policies.entries.get(entry) or self._translated.get(entry) if used else None)
            if not used:
                self._translated.drop(entry)
        unread = self._state.network.unread()
        made.put(UNREAD, UnreadPolicies(unread) if unread else None)
        touched.clear()
        self._alike.clear()
        self._state.selection.forget()
        self.node_pods.tell()
        return (yield from self._commit(made))

    def _govern(self, keys: Iterable[NamespacedName], fresh: _Fresh) -> Steps[None]:
        """Make anew what policies say of the pods *keys*, whose entries are good otherwise."""
        for key in keys:
            yield
            made = self._entries.get(self._made.get(key, ""))
            if isinstance(made, Workload):
                governed = self._compiled(_policies_of(key), made.key, partial(self._governed, key, made))
                fresh.put(made.key, governed or made)
                fresh.used |= self._use(key, governed)

    def _make_pods(self, keys: Iterable[NamespacedName], fresh: _Fresh) -> Steps[None]:
        for key in keys:
            yield
            previous = self._made.pop(key, None)
            if previous is not None:
                fresh.stale.add(previous)
            self.faults.pop(_policies_of(key), None)
            workload = self._compiled(f"Pod {'/'.join(key)}", previous, partial(self._governed_pod, key))
            if workload is not None:
                fresh.entries[workload.key] = workload
                self._made[key] = workload.key
            fresh.used |= self._use(key, workload)

    def _make_services(self, keys: Iterable[NamespacedName], fresh: _Fresh) -> Steps[None]:
        for key in keys:
            yield
            name = f"service/{key[0]}/{key[1]}"
            fresh.put(name, self._compiled(f"Service {'/'.join(key)}", name, partial(self._service, key)))

    def _compiled(self, whose: str, previous: str | None, make: Callable[[], _Made | None]) -> _Made | None:
        """Return what *make* makes of an object, or its last entry where that fails: one object
        never takes others along.
        """
        try:
            made = make()
        except Exception as error:
            self.faults[whose] = f"{type(error).__name__}: {shown(str(error))}"
            log.error("%s cannot be compiled (%s); its last entry stays", whose, self.faults[whose], exc_info=error)
            return cast("_Made | None", self._entries.get(previous or ""))
        self.faults.pop(whose, None)
        return made

    def _governed_pod(self, key: NamespacedName) -> Workload | None:
        self.node_pods.note(key)
        return self._workload(key)

    def _commit(self, made: _Fresh) -> Steps[Delta]:
        """Replace entries, in the last step; what came out as it was is no change."""
        upserts = []
        for key in sorted(made.entries):
            if self._entries.get(key) != made.entries[key]:
                upserts.append(made.entries[key])
            yield
        gone = made.stale - made.entries.keys()
        removals = sorted(key for key in gone if self._entries.pop(key, None) is not None)
        self._entries.update((entry.key, entry) for entry in upserts)
        return Delta(tuple(upserts), tuple(removals))

    def _governed(self, key: NamespacedName, workload: Workload) -> Workload:
        """Return *workload* with what the policies for the pod *key* make of it."""
        said = self._said(key, self._state.pods[key])
        return replace(
            workload,
            mtls=said.modes.mode,
            mtls_from=said.modes.source,
            port_mtls=said.modes.ports,
            policies=said.policies,
            network_policy=said.network,
        )

    def _said(self, key: NamespacedName, pod: objects.PodObject) -> _Said:
        """Return what policies say of *pod*; Istio's themselves matter on its own node only."""
        own: Hashable = None
        named: tuple[NamedPort, ...] = ()
        if pod.node == self._node:
            named = self._state.named(key, pod)
            own = (named, tuple(container.ports for container in pod.containers))
        rests_on = ("said", self._state.labels.likeness(key), pod.host_network, own)
        said = self._alike.once(rests_on, lambda: self._said_alike(key, pod, named))
        network = "" if pod.host_network else self._state.network.selecting(pod.namespace, pod.labels)
        return replace(said, network=network) if network else said

    def _said_alike(self, key: NamespacedName, pod: objects.PodObject, named: tuple[NamedPort, ...]) -> _Said:
        """Return what policies say of all pods that are like *pod*, but for those for the network."""
        policies = self._state.policies
        if pod.node != self._node:
            return _Said(policies.mtls(policies.peers(key)), (), "")
        services = {*self._state.selection.services_of(key), *(service for service, _, _ in named)}
        found = policies.of(key, services)
        own = names(self._at(key, policy, services, named) for policy in found) if not pod.host_network else ()
        return _Said(policies.mtls(found), own, "")

    def _at(
        self, key: NamespacedName, policy: Policy, services: Set[NamespacedName], named: tuple[NamedPort, ...]
    ) -> Spec:
        """Return what *policy* is at the pod *key*, an endpoint of *services*: with the pod's own ports."""
        spec = policy.spec
        if not policy.targets or not isinstance(spec, AuthorizationPolicy) or not ports_of(spec):
            return spec
        leads: dict[int, set[int]] = {}
        for service in services & set(self._state.policies.services(policy.key)):
            for port, numbers in self._state.leads(service, key, named).items():
                leads.setdefault(port, set()).update(numbers)
        return self._translated.at_workload(spec, leads)

    def _use(self, key: NamespacedName, workload: Workload | None) -> set[str]:
        """Keep which local pods use which policies' entries; return those for which that changed."""
        before = set(self._using.pop(key, ()))
        after = set(workload.policies if workload else ())
        for entry in before - after:
            self._users.discard(entry, key)
        for entry in after - before:
            self._users.add(entry, key)
        if workload is not None and workload.policies:
            self._using[key] = workload.policies
        return before ^ after

    def _workload(self, key: NamespacedName) -> Workload | None:
        """Return the entry of the pod *key*, with what policies make of it."""
        pod = self._state.pods.get(key)
        if pod is None or finished(pod) or not pod.addresses or not self._state.is_current(key, pod):
            return None
        account = rules.service_account(pod)
        try:
            identity = spiffe_id(self._trust_domain, pod.namespace, account)
        except IdentityError as error:
            log.error("Pod %s/%s: spec.serviceAccountName: %s (left out)", *key, error)
            return None
        addresses = self._state.owned(key, pod)
        selecting = self._state.selection.services_of(key)
        said = self._said(key, pod)
        declared = tuple(container.ports for container in pod.containers)
        ports, services = self._alike.once(
            ("served", self._state.labels.likeness(key), declared),
            lambda: rules.served(pod, [self._state.services[service] for service in selecting]),
        )
        name = rules.workload_name(pod)
        return Workload(
            uid=pod.uid,
            pod=pod.name,
            namespace=pod.namespace,
            node=pod.node,
            addresses=addresses,
            service_account=account,
            identity=identity,
            workload=name,
            app=pod.labels.get("app", ""),
            version=pod.labels.get("version", ""),
            canonical_service=rules.canonical_service(pod.labels, name),
            canonical_revision=rules.canonical_revision(pod.labels),
            ready=_serving(pod),
            enrolled=self._state.is_enrolled(pod) and not pod.host_network,
            ports=ports,
            probes=rules.probes(pod),
            scrapes=rules.scrapes(pod, []) if self._scrapes else (),
            services=services,
            excluded_ports=tuple(sorted(excluded_ports(pod, EXCLUDE_INBOUND, []))),
            sidecar=has_sidecar(pod),
            hbone=takes_hbone(pod) and not pod.host_network,
            mtls=said.modes.mode,
            mtls_from=said.modes.source,
            port_mtls=said.modes.ports,
            policies=said.policies,
            path=self._state.path(pod, []),
            own_path=path_setting(pod.annotations, "", []) is not None,
            bypass=bypass(pod.annotations, []),
            network_policy=said.network,
        )

    def _service(self, key: NamespacedName) -> Service | None:
        """Return the entry of the Service *key*; None where neither a selector nor an EndpointSlice
        says what its endpoints are: the node routes it.
        """
        service = self._state.services.get(key)
        if service is None or not (service.selector or self._state.slices.known(key)):
            return None
        rests_on = (
            key[0],
            self._state.selection.selector_of(key),
            service.publish_not_ready,
            service.internal_local,
        )
        ready, ending = self._alike.once(("chosen", rests_on), lambda: self._chosen(key, service))
        chosen = _Chosen(rests_on, ready, ending)
        ports = tuple(
            ServicePort(port.port, port.name, rules.port_protocol(port), self._served(key, service, port, chosen))
            for port in service.ports
            if port.transport == "TCP"
        )
        host = f"{service.name}.{service.namespace}.svc.cluster.local"
        path = path_setting(service.annotations, "", [])
        return Service(service.name, service.namespace, host, service.addresses, ports, path, service.created)

    def _chosen(self, key: NamespacedName, service: objects.ServiceObject) -> tuple[list[_Reached], list[_Reached]]:
        """Return the pods that are endpoints of *service*, known as *key*, with their addresses: those that
        are ready, and those that serve on while they end.
        """
        ready: list[_Reached] = []
        ending: list[_Reached] = []
        for where in sorted(self._state.selection.pods_of(key)):
            pod = self._state.pods[where]
            if finished(pod) or not self._takes(service, pod.node):
                continue
            if service.publish_not_ready or _serving(pod):
                ready.append((pod, self._reachable(where, pod)))
            elif pod.ready:
                ending.append((pod, self._reachable(where, pod)))
        return ready, ending

    def _takes(self, service: objects.ServiceObject, node: str) -> bool:
        """Say whether this node's pods may get an endpoint of *service* that is on *node*."""
        return node == self._node or not service.internal_local

    def _served(
        self, key: NamespacedName, service: objects.ServiceObject, port: objects.ServiceObjectPort, chosen: _Chosen
    ) -> tuple[Endpoint, ...]:
        """Return where *port* of the Service *key* is served: by the *chosen* pods, and as its EndpointSlices
        say; where none is ready, by those that serve on while they end, as kube-proxy does (KEP-1669).
        """
        ready, ending = self._alike.once(
            ("endpoints", chosen.rests_on, port.target),
            lambda: (_endpoints(port, chosen.ready), _endpoints(port, chosen.ending)),
        )
        if not self._state.slices.known(key):
            return ready or ending
        found = dict.fromkeys(ready)
        others = dict.fromkeys(ending)
        for endpoint, number in self._state.slices.endpoints(key, port.name):
            if self._takes(service, endpoint.node):
                uid = self._state.pod_at(endpoint.address, key[0], endpoint.pod)
                (found if endpoint.ready else others)[Endpoint(endpoint.address, number, uid)] = None
        return tuple(found or others)

    def _reachable(self, key: NamespacedName, pod: objects.PodObject) -> tuple[Address, ...]:
        return pod.addresses if pod.host_network else self._state.owned(key, pod)


def _policies_of(key: NamespacedName) -> str:
    return f"the policies of Pod {'/'.join(key)}"


def _is_told_by(refused: Refused, policy: Policy, file: str) -> bool:
    """Say whether the row of *policy*, which stands in *file*, tells of *refused*, which has its key: what is in
    force is of that document, an earlier version of it or what stands in for it.
    """
    if refused.ignored or refused.displaced:
        return False
    stands_in = bool(policy.refused) and refused.error.endswith(policy.refused)
    return refused.file == file and (refused.stays or stands_in)


def _serving(pod: objects.PodObject) -> bool:
    """Say whether *pod* may be given new connections."""
    return pod.ready and not pod.terminating and not finished(pod)


def _endpoints(port: objects.ServiceObjectPort, pods: Iterable[_Reached]) -> tuple[Endpoint, ...]:
    found: dict[Endpoint, None] = {}
    for pod, addresses in pods:
        number = rules.target_port(port, pod)
        if number is not None:
            found.update(dict.fromkeys(Endpoint(address, number, pod.uid) for address in addresses))
    return tuple(found)
