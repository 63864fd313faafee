"""The cluster's objects as they came, the indexes over them, and what a change of one touches: the
first of the two steps of ``mesh/compile.py``, whose head tells how they work together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice
from typing import Final

from nodeagent.mesh import own_keys
from nodeagent.mesh.endpoint_slices import EndpointSlices
from nodeagent.mesh.local import finished, path_setting
from nodeagent.mesh.network_policies import NetworkPolicies
from nodeagent.mesh.policies import PEER_AUTHENTICATION, Policies
from nodeagent.mesh.selection import NamespacedName, PodLabels, Postings, Selection
from nodeagent.mesh.service_ports import ports_at, ports_of
from nodeagent.policy.model import AuthorizationPolicy, MtlsMode, PathSetting
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.objects import (
    EndpointSliceObject,
    NamespaceObject,
    NetworkPolicyObject,
    NodeObject,
    PodObject,
    ServiceObject,
    UnreadPolicy,
)
from nodeagent.resources.security import KINDS, Policy
from nodeagent.vocabulary import Address, ObjectKey, PodUid

NAMED_KEYS: Final = 8
"""So many wrong keys of one pod are named: whoever makes its Services makes as many as he likes."""
NamedPort = tuple[NamespacedName, str, int]
"""A Service, and the name and number of a port in an EndpointSlice of it."""


@dataclass(slots=True)
class Touched:
    """What has to be made anew, by what of it: a pod's whole entry, or what policies say of it alone."""

    pods: set[NamespacedName] = field(default_factory=set)
    modes: set[NamespacedName] = field(default_factory=set)
    services: set[NamespacedName] = field(default_factory=set)
    policies: set[ObjectKey] = field(default_factory=set)
    _together: dict[int, tuple[NamespacedName, ...]] = field(default_factory=dict)
    """Whose names were added together, by the object's identity, for which it is kept."""

    def add_pods(self, names: tuple[NamespacedName, ...]) -> None:
        """Touch *names*: at no cost where the same object was added before."""
        self._add(self.pods, names)

    def add_services(self, names: tuple[NamespacedName, ...]) -> None:
        """The same of Services."""
        self._add(self.services, names)

    def _add(self, touched: set[NamespacedName], names: tuple[NamespacedName, ...]) -> None:
        if names and id(names) not in self._together:
            self._together[id(names)] = names
            touched.update(names)

    def clear(self) -> None:
        """Say that all of it has been made anew."""
        for touched in (self.pods, self.modes, self.services):
            touched.clear()
        self.policies.clear()
        self._together.clear()


class ClusterState:
    """Everything that is known of the cluster, as *node* sees it; what changes is noted in ``touched``.
    *runs_here* says whether a pod is seen to run on this node, with a network of its own.
    """

    def __init__(
        self, node: str, default_mtls: MtlsMode, root_namespace: str, runs_here: Callable[[PodObject], bool]
    ) -> None:
        self._node = node
        self._runs_here = runs_here
        self.pods: dict[NamespacedName, PodObject] = {}
        self.services: dict[NamespacedName, ServiceObject] = {}
        self.nodes: dict[str, NodeObject] = {}
        self.namespaces: dict[str, NamespaceObject] = {}
        self._enrolled: set[tuple[PodUid, str]] = set()
        """Whose mark is there, and by which node; empty: by any."""
        self.labels = PodLabels()
        self.selection = Selection(self.labels)
        self.slices = EndpointSlices()
        self.policies = Policies(default_mtls, root_namespace, self.labels)
        self.network = NetworkPolicies()
        self.touched = Touched()
        self._claims: Postings[Address, NamespacedName] = Postings()
        self._contested: set[Address] = set()
        """Addresses that several pods claim."""
        self._running_here: set[NamespacedName] = set()
        self._by_uid: Postings[PodUid, NamespacedName] = Postings()

    def take(self, change: AnyChange) -> None:
        """Know *change*, and note whom it touches."""
        if isinstance(change, EnrolledChange):
            self._mark(change)
        elif change.kind in KINDS:
            policy = change.object if isinstance(change.object, Policy) else None
            self._put_policy((change.kind, change.namespace, change.name), policy, change.file)
        else:
            self._put(change)

    def affected(self, key: ObjectKey) -> Set[NamespacedName]:
        """Return the pods that the policy *key* is for."""
        found = set(self.policies.pods(key))
        for service in self.policies.services(key):
            found.update(self.selection.pods_of(service))
            if service in self.services:
                for each in self.slices.of(service):
                    found.update(self._named_by(each))
        return found

    def named(self, key: NamespacedName, pod: PodObject) -> tuple[NamedPort, ...]:
        """Return the Services of its namespace whose EndpointSlices name *pod*, known as *key*, by an address
        that it has, each with a port's name and number there.
        """
        found: set[NamedPort] = set()
        for address in self.owned(key, pod):
            found.update(self.slices.ports_at(address))
        return tuple(sorted(each for each in found if each[0][0] == key[0] and each[0] in self.services))

    def leads(self, service: NamespacedName, key: NamespacedName, named: Iterable[NamedPort]) -> dict[int, set[int]]:
        """Return to which ports of the pod *key* each port of *service* leads, which selects it or has it in
        slices, as *named* says.
        """
        by_slices = [(name, number) for whose, name, number in named if whose == service]
        selected = service in self.selection.services_of(key)
        found: dict[int, set[int]] = {}
        for port, number in ports_at(self.services[service], self.pods[key], by_slices, selected=selected):
            found.setdefault(port, set()).add(number)
        return found

    def strange_ports(self, key: ObjectKey) -> str:
        """Return, in words, which ports of the policy *key* are no ports of the Services that it is attached
        to; empty: none is such, or none of these is known.
        """
        policy = self.policies.known[key]
        services = [self.services[each] for each in self.policies.services(key) if each in self.services]
        if not services or not isinstance(policy.spec, AuthorizationPolicy):
            return ""
        known: set[int] = set()
        for service in services:
            known.update(port.port for port in service.ports)
        strange = sorted(ports_of(policy.spec) - known)
        names = ", ".join(service.name for service in services)
        return f"ports: {', '.join(map(str, strange))}: no port of Service {names}: nobody's" if strange else ""

    def is_current(self, key: NamespacedName, pod: PodObject) -> bool:
        """Say whether *pod*, known as *key*, is the one that its uid means."""
        return max(self._by_uid.get(pod.uid), key=self._age) == key

    def is_enrolled(self, pod: PodObject) -> bool:
        """Say whether *pod* takes mTLS, as its own node says: no other can say it, nor take it back."""
        return (pod.uid, pod.node) in self._enrolled or (pod.uid, "") in self._enrolled

    def owned(self, key: NamespacedName, pod: PodObject) -> tuple[Address, ...]:
        """Return the addresses that are *pod*'s, the pod's known as *key*."""
        return tuple(address for address in pod.addresses if self._holder(address) == key)

    def _holder(self, address: Address) -> NamespacedName | None:
        """Return which of the pods that claim *address* has it; None: nobody claims it.

        A pod's status is written by its node's kubelet, and by whoever may write it. So what is seen
        to run here has its address whatever others say; and what two nodes claim is the node's whose
        range has it, else the older pod's: a new one takes nothing from it. Of two pods of one node the
        younger has it, as the older is on its way out.
        """
        claims = self._claims.get(address)
        if len(claims) < 2:
            return next(iter(claims), None)
        if here := claims & self._running_here:
            return max(here, key=self._age)
        rivals: dict[str, NamespacedName] = {}
        for key in sorted(claims, key=self._age):
            rivals[self.pods[key].node] = key
        return min(rivals.values(), key=lambda key: self._weakness(key, address))

    def _weakness(self, key: NamespacedName, address: Address) -> tuple[bool, bool, str, str, NamespacedName]:
        """Return what orders the pods of several nodes that claim *address*: the least has it."""
        pod = self.pods[key]
        node = self.nodes.get(pod.node)
        number = ip_address(address)
        inside = node is not None and any(number in each for each in node.pod_ranges)
        return pod.terminating, not inside, pod.created, pod.uid, key

    def pod_at(self, address: Address, namespace: str, name: str) -> PodUid:
        """Return which pod is at *address*: the one that owns it, or the pod *name* on its node's
        network that an EndpointSlice of *namespace* refers to; empty: none that is known.

        A reference alone proves nothing: who writes slices would have others' pods dial for them.
        """
        holder = self._holder(address)
        if holder is not None:
            return self.pods[holder].uid
        named = self.pods.get((namespace, name))
        return named.uid if named is not None and named.host_network and address in named.addresses else PodUid("")

    def path(self, pod: PodObject, faults: list[str]) -> PathSetting:
        """Return the path that *pod* or else its namespace asks for; what is wrong there goes to *faults*."""
        own = path_setting(pod.annotations, "", faults)
        namespace = self.namespaces.get(pod.namespace)
        wider = path_setting(namespace.annotations, f"Namespace {namespace.name}: ", faults) if namespace else None
        return own or wider or "auto"

    def key_faults(self, pod: PodObject, faults: list[str]) -> None:
        """Add to *faults* what is wrong with the path that *pod*, its namespace, or a Service that
        selects it asks for, and which keys of the project's own nobody reads there: some, and how many more.
        """
        wrong = self._wrong_keys(pod)
        faults += map(str, islice(wrong, NAMED_KEYS))
        if more := sum(1 for _ in wrong):
            faults.append(f"and {more} more labels and annotations of it, its Namespace and its Services")

    def _wrong_keys(self, pod: PodObject) -> Iterator[str | own_keys.UnreadKey]:
        paths: list[str] = []
        self.path(pod, paths)
        yield from paths
        yield from own_keys.unread(pod.labels, pod.annotations, "", own_keys.OF_PODS)
        namespace = self.namespaces.get(pod.namespace)
        if namespace is not None:
            whose = f"Namespace {namespace.name}: "
            yield from own_keys.unread(namespace.labels, namespace.annotations, whose, own_keys.OF_NAMESPACES)
        for key in sorted(self.selection.services_of((pod.namespace, pod.name))):
            annotations = self.services[key].annotations
            of_service: list[str] = []
            path_setting(annotations, f"Service {key[1]}: ", of_service)
            yield from of_service
            yield from own_keys.unread({}, annotations, f"Service {key[1]}: ", own_keys.OF_SERVICES)

    def _age(self, key: NamespacedName) -> tuple[bool, str, str, NamespacedName]:
        pod = self.pods[key]
        return (not pod.terminating, pod.created, pod.uid, key)

    def _put(self, change: Change) -> None:
        key = (change.namespace, change.name)
        found = change.object
        if change.kind == "Pod":
            self._put_pod(key, found if isinstance(found, PodObject) else None)
        elif change.kind == "Service":
            self._put_service(key, found if isinstance(found, ServiceObject) else None)
        elif change.kind == "EndpointSlice":
            self._put_slice(key, found if isinstance(found, EndpointSliceObject) else None)
        elif change.kind == "Namespace":
            self._put_namespace(change.name, found if isinstance(found, NamespaceObject) else None)
        elif change.kind == "Node":
            self._put_node(change.name, found if isinstance(found, NodeObject) else None)
        else:
            self._put_network_policy(change, found if isinstance(found, NetworkPolicyObject | UnreadPolicy) else None)

    def _mark(self, change: EnrolledChange) -> None:
        if change.enrolled:
            self._enrolled.add((change.uid, change.node))
        else:
            self._enrolled.discard((change.uid, change.node))
        self.touched.pods |= self._by_uid.get(change.uid)

    def _put_pod(self, key: NamespacedName, pod: PodObject | None) -> None:
        self._touch_pod(key)
        before = self.pods.pop(key, None)
        if before is not None:
            self.labels.drop(key)
            self._by_uid.discard(before.uid, key)
            self._running_here.discard(key)
            for address in before.addresses:
                self._claims.discard(address, key)
                if len(self._claims.get(address)) < 2:
                    self._contested.discard(address)
        if pod is not None:
            self.pods[key] = pod
            self.labels.put(key, pod.labels)
            self._by_uid.add(pod.uid, key)
            self._claim(key, pod)
            self._touch_pod(key)

    def _claim(self, key: NamespacedName, pod: PodObject) -> None:
        """Note what *pod* says that its addresses are; one that no node has has none."""
        if finished(pod) or pod.host_network or not pod.node:
            return
        if self._runs_here(pod):
            self._running_here.add(key)
        for address in pod.addresses:
            self._claims.add(address, key)
            if len(self._claims.get(address)) > 1:
                self._contested.add(address)

    def _touch_pod(self, key: NamespacedName) -> None:
        """Mark the pod, the Services that select it, and whoever claims one of its addresses (and their Services)."""
        pod = self.pods.get(key)
        if pod is None:  # it is selected by nobody, too
            self.touched.pods.add(key)
            return
        concerned = {key}
        concerned |= self._by_uid.get(pod.uid)
        for address in pod.addresses:
            concerned |= self._claims.get(address)
            self.touched.services |= self.slices.services_at(address)
        for each in concerned:
            self.touched.pods.add(each)
            self.touched.add_services(self.selection.services_of(each))

    def _put_node(self, name: str, node: NodeObject | None) -> None:
        before = self.nodes.pop(name, None)
        if node is not None:
            self.nodes[name] = node
        if (before.pod_ranges if before else ()) == (node.pod_ranges if node else ()):
            return
        for address in self._contested:
            for key in self._claims.get(address):
                self._touch_pod(key)

    def _put_slice(self, key: NamespacedName, found: EndpointSliceObject | None) -> None:
        """Mark the Services, and the pods to which policies for a Service come with the slice, or go with it."""
        self._touch_named(self.slices.get(key))
        self.touched.services |= self.slices.put(key, found)
        self._touch_named(self.slices.get(key))

    def _touch_named(self, found: EndpointSliceObject | None) -> None:
        if found is not None and self.policies.attached((found.namespace, found.service)):
            self.touched.modes.update(self._named_by(found))

    def _named_by(self, found: EndpointSliceObject) -> Iterator[NamespacedName]:
        """Yield the pods of its own namespace that a slice names: it says nothing of others'."""
        for endpoint in found.endpoints:
            holder = self._holder(endpoint.address)
            if holder is not None and holder[0] == found.namespace:
                yield holder

    def _put_service(self, key: NamespacedName, service: ServiceObject | None) -> None:
        self.touched.services.add(key)
        for each in self.slices.of(key):
            self._touch_named(each)
        self.touched.add_pods(self.selection.pods_of(key))
        self.services.pop(key, None)
        self.selection.drop_service(key)
        if service is not None and not service.external:
            self.services[key] = service
            self.selection.put_service(key, service.selector)
            self.touched.add_pods(self.selection.pods_of(key))

    def _put_namespace(self, name: str, namespace: NamespaceObject | None) -> None:
        self.namespaces.pop(name, None)
        if namespace is not None:
            self.namespaces[name] = namespace
        self.touched.pods |= self.labels.within(name)

    def _put_network_policy(self, change: Change, policy: NetworkPolicyObject | UnreadPolicy | None) -> None:
        """Mark the pods that the policy was for and is for now; one that cannot be read is no pod's."""
        before = self.network.selector(change.namespace, change.name)
        self.network.put(change.kind, change.namespace, change.name, policy)
        after = self.network.selector(change.namespace, change.name)
        for selector in (before, after):
            if selector is not None:
                pods = self.labels.within(change.namespace)
                self.touched.modes.update(key for key in pods if selector.matches(self.pods[key].labels))

    def _put_policy(self, key: ObjectKey, policy: Policy | None, file: str) -> None:
        """Mark the policy and the pods that it was for and is for now: their entries change by
        their modes and policies alone, those of other nodes' pods by their modes.
        """
        self.touched.policies.add(key)
        self.touched.modes |= self._governed(key)
        self.policies.put(key, policy, file)
        self.touched.modes |= self._governed(key)

    def _governed(self, key: ObjectKey) -> Set[NamespacedName]:
        """Return the pods whose entries say something of the policy *key*."""
        found = self.affected(key)
        return found if key[0] == PEER_AUTHENTICATION else {pod for pod in found if self.pods[pod].node == self._node}
