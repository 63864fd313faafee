"""Turn resources into what a lab shall be: pods with a node and addresses, Services with
ClusterIPs. Pure, and all or nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain

from nodeagent.lab.layout import ADDRESSES, FIRST_HOST, LAST_HOST, SERVICES, Draft, Node, NodeName, Object
from nodeagent.resources.fields import family_of
from nodeagent.resources.load import Document, refuse_duplicates
from nodeagent.resources.model import (
    ConfigMapResource,
    DeploymentResource,
    NamespaceResource,
    NetworkPolicyResource,
    PodResource,
    SecurityResource,
    ServiceAccountResource,
    ServiceResource,
    ServiceSpec,
)
from nodeagent.resources.pod import PodSpec
from nodeagent.vocabulary import ObjectKey

SPEC_HASH = "lab.nodeagent.io/spec-hash"
_FIRST_CLUSTER_IP = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write and what to remove."""

    objects: tuple[Object, ...]
    """Namespaces, ServiceAccounts, ConfigMaps, policies, Services."""
    pods: tuple[Object, ...]
    """New pods, and known ones whose labels or annotations changed; each with uid, node and addresses."""
    removed: tuple[Object, ...]
    """Pods to end: replaced, or no longer wanted by their Deployment."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pod that the documents ask for."""

    document: Document
    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: PodSpec
    path: str
    """Where the spec is in its document, for messages."""
    owner: str = ""
    """The Deployment's name."""

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    def hash(self) -> str:
        return _digest(self.spec.dump())


@dataclass(slots=True)
class _Cluster:
    """What is known and taken while a plan is made."""

    nodes: Sequence[Node]
    objects: dict[ObjectKey, Object]
    pods: dict[tuple[str, str], Object]
    hosts: dict[NodeName, set[int]] = field(default_factory=dict)
    cluster_ips: dict[str, str] = field(default_factory=dict)
    """Address -> the Service that has it."""


def make(
    documents: Sequence[Document],
    objects: Iterable[Object],
    pods: Iterable[Object],
    nodes: Sequence[Node],
    new_uid: Callable[[], str],
) -> Plan:
    """Return the plan by which *documents* are applied to a lab of *nodes* that holds *objects* and
    *pods*.

    Raises ResourceError if documents contradict each other or what is there: duplicates, address
    conflicts, missing references.
    """
    refuse_duplicates(documents)
    known = {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in objects}
    cluster = _Cluster(nodes, known, {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in pods})
    written = _plain_objects(documents, cluster)
    cluster.objects |= {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in written
    }
    wanted = list(chain.from_iterable(map(_pods_of, documents)))
    _check_names(wanted)
    for pod in wanted:
        _check_references(pod, cluster)
    kept, changed, removed = _compare(wanted, documents, cluster)
    cluster.hosts = {node.name: set() for node in nodes}
    for each in kept:
        _take(cluster, each)
    created = [
        _create(pod, cluster, new_uid())
        for pod in sorted((pod for pod in wanted if pod.key not in {_key(each) for each in kept}), key=_places_itself)
    ]
    services = _services(documents, cluster)
    return Plan(tuple(written + services), tuple(changed + created), tuple(removed))


def _places_itself(pod: Wanted) -> bool:
    """Sort key: pods that ask for addresses or a node choose first."""
    return ADDRESSES not in pod.annotations and pod.spec.node_name is None


def _key(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def _plain_objects(documents: Sequence[Document], cluster: _Cluster) -> list[Object]:
    """Return the objects that need no decision, and every namespace's own service account."""
    found: list[Object] = []
    namespaces = {"default"} | {name for kind, _, name in cluster.objects if kind == "Namespace"}
    namespaces |= {
        document.resource.metadata.name for document in documents if isinstance(document.resource, NamespaceResource)
    }
    for document in documents:
        resource = document.resource
        if not isinstance(resource, NamespaceResource) and resource.metadata.namespace not in namespaces:
            raise document.error(
                "metadata.namespace",
                resource.metadata.namespace,
                f"a Namespace that exists or stands in the input: {', '.join(sorted(namespaces))}",
            )
        if isinstance(
            resource,
            NamespaceResource | ServiceAccountResource | ConfigMapResource | NetworkPolicyResource | SecurityResource,
        ):
            value = resource.dump()
            if isinstance(resource, NamespaceResource):
                value["metadata"].pop("namespace", None)
            else:
                value["metadata"]["namespace"] = resource.metadata.namespace
            found.append(value)
    present = {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found} | set(
        cluster.objects
    )
    for name in sorted(namespaces):
        if ("Namespace", "", name) not in present:
            found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        if ("ServiceAccount", name, "default") not in present:
            found.append(
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
            )
    return found


def _pods_of(document: Document) -> list[Wanted]:
    resource = document.resource
    metadata = resource.metadata
    if isinstance(resource, PodResource):
        return [
            Wanted(
                document,
                metadata.name,
                metadata.namespace,
                metadata.labels,
                metadata.annotations,
                resource.spec,
                "spec",
            )
        ]
    if not isinstance(resource, DeploymentResource):
        return []
    template = resource.spec.template
    revision = _digest(template.spec.dump())
    labels = {**template.metadata.labels, "pod-template-hash": revision}
    pods = []
    for index in range(resource.spec.replicas):
        suffix = f"-{revision}-{_digest([metadata.name, index])[:5]}"
        name = metadata.name[: 63 - len(suffix)] + suffix
        pods.append(
            Wanted(
                document,
                name,
                metadata.namespace,
                labels,
                template.metadata.annotations,
                template.spec,
                "spec.template.spec",
                metadata.name,
            )
        )
    return pods


def _check_names(wanted: Iterable[Wanted]) -> None:
    seen: dict[tuple[str, str], Wanted] = {}
    for pod in wanted:
        other = seen.setdefault(pod.key, pod)
        if other is not pod:
            raise pod.document.error(
                "metadata.name", pod.name, f"a pod name that is not one of {other.document.resource.describe()}"
            )


def _check_references(pod: Wanted, cluster: _Cluster) -> None:
    """Raise ResourceError if *pod* names a service account, node or ConfigMap that is not there."""

    def need(field_path: str, kind: str, name: str, namespace: str) -> None:
        if (kind, namespace, name) not in cluster.objects:
            there = sorted(known for each, space, known in cluster.objects if (each, space) == (kind, namespace))
            raise pod.document.error(
                f"{pod.path}.{field_path}",
                name,
                f"a {kind} of namespace {namespace}: {', '.join(there) or 'there is none'}",
            )

    need("serviceAccountName", "ServiceAccount", pod.spec.service_account_name, pod.namespace)
    nodes = [node.name for node in cluster.nodes]
    if pod.spec.node_name is not None and pod.spec.node_name not in nodes:
        raise pod.document.error(f"{pod.path}.nodeName", pod.spec.node_name, ", ".join(nodes))
    for index, volume in enumerate(pod.spec.volumes):
        if volume.config_map and not volume.config_map.optional:
            need(f"volumes[{index}].configMap.name", "ConfigMap", volume.config_map.name, pod.namespace)
    for at, container in enumerate(pod.spec.containers):
        for index, source in enumerate(container.env_from):
            if not source.config_map_ref.optional:
                need(
                    f"containers[{at}].envFrom[{index}].configMapRef.name",
                    "ConfigMap",
                    source.config_map_ref.name,
                    pod.namespace,
                )
        for index, variable in enumerate(container.env):
            reference = variable.value_from.config_map_key_ref if variable.value_from else None
            if reference and not reference.optional:
                need(
                    f"containers[{at}].env[{index}].valueFrom.configMapKeyRef.name",
                    "ConfigMap",
                    reference.name,
                    pod.namespace,
                )


def _compare(
    wanted: Sequence[Wanted], documents: Sequence[Document], cluster: _Cluster
) -> tuple[list[Object], list[Object], list[Object]]:
    """Return the pods that stay, those among them with new labels or annotations, and those that go."""
    deployments = {
        (document.resource.metadata.namespace, document.resource.metadata.name)
        for document in documents
        if isinstance(document.resource, DeploymentResource)
    }
    by_key = {pod.key: pod for pod in wanted}
    kept: list[Object] = []
    changed: list[Object] = []
    removed: list[Object] = []
    for key, pod in cluster.pods.items():
        want = by_key.get(key)
        owner = next((each["name"] for each in pod["metadata"].get("ownerReferences", ())), None)
        if want is None:
            (removed if (key[0], owner) in deployments else kept).append(pod)
        elif not _same_place(pod, want):
            removed.append(pod)
        else:
            metadata = {
                **pod["metadata"],
                "labels": dict(want.labels),
                "annotations": {**want.annotations, SPEC_HASH: want.hash()},
            }
            if metadata != pod["metadata"]:
                pod = {**pod, "metadata": metadata}
                changed.append(pod)
            kept.append(pod)
    return kept, changed, removed


def _same_place(pod: Object, want: Wanted) -> bool:
    annotations = pod["metadata"]["annotations"]
    return bool(annotations[SPEC_HASH] == want.hash() and annotations.get(ADDRESSES) == want.annotations.get(ADDRESSES))


def _take(cluster: _Cluster, pod: Object) -> None:
    if not pod["spec"].get("hostNetwork"):
        cluster.hosts[pod["spec"]["nodeName"]].add(int(IPv4Address(pod["status"]["podIP"])) & 0xFF)


def _create(pod: Wanted, cluster: _Cluster, uid: str) -> Object:
    node, host = _place(pod, cluster)
    addresses = [{"ip": str(address)} for address in (node.addresses if host is None else node.pod_addresses(host))]
    metadata: Draft = {"name": pod.name, "namespace": pod.namespace, "uid": uid, "labels": dict(pod.labels)}
    metadata["annotations"] = {**pod.annotations, SPEC_HASH: pod.hash()}
    if pod.owner:
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": pod.owner, "controller": True}
        ]
    spec = {**pod.spec.dump(), "nodeName": node.name, "serviceAccountName": pod.spec.service_account_name}
    hosts = [{"ip": str(address)} for address in node.addresses]
    status = {"podIP": addresses[0]["ip"], "podIPs": addresses, "hostIP": hosts[0]["ip"], "hostIPs": hosts}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def _place(pod: Wanted, cluster: _Cluster) -> tuple[Node, int | None]:
    """Return the pod's node and host number (None: the node's own network), and take the number."""
    candidates = [node for node in cluster.nodes if pod.spec.node_name in (None, node.name)]
    if asked := pod.annotations.get(ADDRESSES):
        node, host = _asked(pod, asked, candidates)
        if host in cluster.hosts[node.name]:
            raise pod.document.error(f"metadata.annotations[{ADDRESSES}]", asked, "addresses that no other pod has")
    else:
        node = min(candidates, key=lambda node: (len(cluster.hosts[node.name]), node.index))
        if pod.spec.host_network:
            return node, None
        free = (number for number in range(FIRST_HOST, LAST_HOST + 1) if number not in cluster.hosts[node.name])
        number = next(free, None)
        if number is None:
            raise pod.document.error(
                f"{pod.path}.nodeName", node.name, f"a node with fewer than {LAST_HOST - FIRST_HOST + 1} pods"
            )
        host = number
    cluster.hosts[node.name].add(host)
    return node, host


def _asked(pod: Wanted, asked: str, candidates: Sequence[Node]) -> tuple[Node, int]:
    """Return what the ADDRESSES annotation stands for: an IPv4 address, and the IPv6 one with the
    same host number if any.
    """
    try:
        addresses = [ip_address(text.strip()) for text in asked.split(",")]
    except ValueError:
        addresses = []
    for node in candidates:
        if not pod.spec.host_network and addresses and addresses[0] in node.pods[0]:
            host = int(addresses[0]) & 0xFF
            pair: tuple[IPv4Address, IPv6Address] = node.pod_addresses(host)
            if FIRST_HOST <= host <= LAST_HOST and addresses in (list(pair), list(pair[:1])):
                return node, host
    example = candidates[0].pod_addresses(7)
    raise pod.document.error(
        f"metadata.annotations[{ADDRESSES}]",
        asked,
        f"addresses of one host of its node's ranges, such as {example[0]},{example[1]}",
    )


def _services(documents: Sequence[Document], cluster: _Cluster) -> list[Object]:
    """Return the Services with their ClusterIPs; those asked for are given out first."""
    found = [document for document in documents if isinstance(document.resource, ServiceResource)]
    ours = {document.key for document in found}
    for key, value in cluster.objects.items():
        if key[0] == "Service" and key not in ours:
            cluster.cluster_ips |= dict.fromkeys(value["spec"]["clusterIPs"], f"{key[1]}/{key[2]}")
    found.sort(key=lambda document: not _asked_ips(document))
    return [_service(document, cluster) for document in found]


def _asked_ips(document: Document) -> tuple[str, ...]:
    assert isinstance(document.resource, ServiceResource)
    spec = document.resource.spec
    return spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())


def _service(document: Document, cluster: _Cluster) -> Object:
    resource = document.resource
    assert isinstance(resource, ServiceResource)
    spec = resource.spec
    metadata = resource.metadata
    value = resource.dump()
    value["metadata"]["namespace"] = metadata.namespace
    asked = _asked_ips(document)
    families = _families(spec)
    if asked and "None" in asked:
        addresses = ["None"]
    else:
        before = cluster.objects.get(document.key, {}).get("spec", {}).get("clusterIPs", [])
        for address in asked:
            _check_cluster_ip(document, address, cluster)
        addresses = [_cluster_ip(document, family, asked or tuple(before), cluster) for family in families]
        cluster.cluster_ips |= dict.fromkeys(addresses, f"{metadata.namespace}/{metadata.name}")
    value["spec"] |= {
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ipFamilies": list(families),
        "type": "ClusterIP",
    }
    return value


def _families(spec: ServiceSpec) -> tuple[str, ...]:
    """Return the families of the ClusterIPs, the first one first: one unless both are asked for, as
    the API server decides.
    """
    first = next((each for each in (spec.cluster_ip, *spec.cluster_ips) if each not in (None, "None")), None)
    asked = spec.ip_families or (family_of(first) if first is not None else "IPv4",)
    dual = spec.ip_family_policy != "SingleStack" or len(spec.cluster_ips) == 2
    if len(asked) == 2 or not dual:
        return asked
    return (asked[0], "IPv6" if asked[0] == "IPv4" else "IPv4")


def _check_cluster_ip(document: Document, address: str, cluster: _Cluster) -> None:
    if not any(ip_address(address) in network for network in SERVICES):
        raise document.error("spec.clusterIP", address, f"None, or an address of {SERVICES[0]} or {SERVICES[1]}")
    if address in cluster.cluster_ips:
        raise document.error(
            "spec.clusterIP", address, f"an address that Service {cluster.cluster_ips[address]} does not have"
        )


def _cluster_ip(document: Document, family: str, preferred: Sequence[str], cluster: _Cluster) -> str:
    version, network = (4, SERVICES[0]) if family == "IPv4" else (6, SERVICES[1])
    for address in preferred:
        if address != "None" and ip_address(address).version == version and address not in cluster.cluster_ips:
            return address
    free = (
        str(network[number])
        for number in range(_FIRST_CLUSTER_IP, 65535)
        if str(network[number]) not in cluster.cluster_ips
    )
    try:
        return next(free)
    except StopIteration:
        raise document.error("spec.clusterIPs", None, f"fewer Services: {network} has no free address") from None
