"""Kubernetes' NetworkPolicies as nftables rules on a node's forward hook, as a CNI plugin enforces
them. Pure.

Each node looks after its own pods: what comes to one that a policy isolates must be let in, what
leaves one must be let out, so both ends of a connection between nodes decide. Replies pass by
connection tracking; a pod always reaches itself, and the node its pods (the kubelet's probes),
because that never is forwarded. Connections to the node itself (DNS) are not filtered either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Final, Literal

from nodeagent.lab.layout import Object
from nodeagent.resources.objects import label_selector
from nodeagent.resources.part import Field

Direction = Literal["ingress", "egress"]
_DIRECTIONS: Final[tuple[Direction, ...]] = ("egress", "ingress")
_NAME_LABEL = "kubernetes.io/metadata.name"
_FAMILIES = {4: "ip", 6: "ip6"}
_ANY_POD: Final[Object] = {"namespaceSelector": {}}
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What policies speak of: pods with a network of their own, and namespaces' labels."""

    pods: Sequence[Object]
    labels: Mapping[str, Mapping[str, str]]
    """Namespace -> its labels."""

    @classmethod
    def of(cls, pods: Iterable[Object], namespaces: Iterable[Object]) -> Cluster:
        """Return what *pods* and *namespaces*, objects of the API, come to."""
        networked = [
            pod for pod in pods if not pod["spec"].get("hostNetwork") and pod["status"].get("phase") not in _ENDED
        ]
        named = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in namespaces}
        return cls(networked, {name: {_NAME_LABEL: name, **labels} for name, labels in named.items()})


def ruleset(policies: Sequence[Object], cluster: Cluster, node: str) -> str:
    """Return the nftables input that replaces the rules of *node* for *policies*."""
    own = [pod for pod in cluster.pods if pod["spec"].get("nodeName") == node]
    chains: list[str] = []
    jumps: list[str] = []
    for pod in own:
        for direction in _DIRECTIONS:
            isolating = [each for each in policies if _isolates(each, pod, direction)]
            if isolating:
                lines = dict.fromkeys(
                    chain.from_iterable(_lines(policy, pod, cluster, direction) for policy in isolating)
                )
                name = f"{direction}-{len(chains)}"
                chains.append(f" chain {name} {{ {' '.join(f'{line} return;' for line in lines)} drop; }}")
                jumps += [f"{match} jump {name};" for match in _at(pod, "daddr" if direction == "ingress" else "saddr")]
    itself = list(chain.from_iterable(map(_to_itself, own)))
    base = ["type filter hook forward priority filter;", "ct state established,related accept;", *itself, *jumps]
    table = "table inet nodeagent-lab-policies"
    return "\n".join(
        [table, f"delete {table}", f"{table} {{", *chains, f" chain forward {{ {' '.join(base)} }}", "}", ""]
    )


def _to_itself(pod: Object) -> Iterator[str]:
    """Yield what lets *pod* reach its own addresses."""
    for source, destination in zip(_at(pod, "saddr"), _at(pod, "daddr"), strict=True):
        yield f"{source} {destination} accept;"


def _isolates(policy: Object, pod: Object, direction: Direction) -> bool:
    """Say whether *policy* selects *pod* and has a say on *direction*: policyTypes, by default
    Ingress, and Egress where there are such rules.
    """
    spec = policy["spec"]
    metadata = pod["metadata"]
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    if policy["metadata"]["namespace"] != metadata["namespace"] or direction.capitalize() not in types:
        return False
    return _matches(spec["podSelector"], metadata.get("labels", {}))


def _lines(policy: Object, pod: Object, cluster: Cluster, direction: Direction) -> Iterator[str]:
    """Yield what nftables shall match to let in to *pod*, or out of it, what *policy* does."""
    end = "saddr" if direction == "ingress" else "daddr"
    for rule in policy["spec"].get(direction) or ():
        ports = rule.get("ports") or []
        peers = rule.get("from" if direction == "ingress" else "to") or []
        if not peers:
            yield from _ports(ports, pod if direction == "ingress" else None)
        if not peers and direction == "egress":  # to whomever: a port's name is each pod's own
            ports = [port for port in ports if isinstance(port.get("port"), str)]
            peers = [_ANY_POD] if ports else []
        for match, other in _peers(peers, policy, cluster, end):
            yield from (f"{match} {port}".strip() for port in _ports(ports, pod if direction == "ingress" else other))


def _peers(peers: Sequence[Object], policy: Object, cluster: Cluster, end: str) -> Iterator[tuple[str, Object | None]]:
    """Yield how each of *peers* is matched at the packet's *end*, and the pod that it is."""
    for pod in cluster.pods:
        if any("ipBlock" not in peer and _is_peer(peer, pod, policy, cluster) for peer in peers):
            yield from ((match, pod) for match in _at(pod, end))
    for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
        family = _FAMILIES[ip_network(block["cidr"]).version]
        excepted = f" {family} {end} != {{ {', '.join(block['except'])} }}" if block.get("except") else ""
        yield f"{family} {end} {block['cidr']}{excepted}", None


def _is_peer(peer: Object, pod: Object, policy: Object, cluster: Cluster) -> bool:
    namespace = pod["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        near = _matches(peer["namespaceSelector"], cluster.labels.get(namespace, {_NAME_LABEL: namespace}))
    else:
        near = namespace == policy["metadata"]["namespace"]
    return near and _matches(peer.get("podSelector", {}), pod["metadata"].get("labels", {}))


def _ports(ports: Sequence[Object], server: Object | None) -> Iterator[str]:
    """Yield how each of *ports* (none: all) of *server* is matched; one with a name that *server*
    does not have, or nobody knows, is none.
    """
    if not ports:
        yield ""
    for port in ports:
        protocol = port.get("protocol", "TCP")
        number = port.get("port")
        if isinstance(number, str):
            number = _named(server, number, protocol) if server is not None else 0
        if number is None:
            yield f"meta l4proto {protocol.lower()}"
        elif number:
            last = port.get("endPort")
            yield f"{protocol.lower()} dport {number}" + (f"-{last}" if last else "")


def _named(pod: Object, name: str, protocol: str) -> int:
    """Return the number of *pod*'s container port *name*, 0 if it has none."""
    ports = chain.from_iterable(container.get("ports", ()) for container in pod["spec"]["containers"])
    return next(
        (
            each["containerPort"]
            for each in ports
            if each.get("name") == name and each.get("protocol", "TCP") == protocol
        ),
        0,
    )


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    return label_selector(Field("selector", selector)).matches(labels)


def _at(pod: Object, end: str) -> list[str]:
    """Return how *pod*'s addresses are matched at the packet's *end*."""
    return [f"{_FAMILIES[ip_address(each['ip']).version]} {end} {each['ip']}" for each in pod["status"]["podIPs"]]
