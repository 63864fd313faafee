"""What a Service stands for: its endpoints, the node's nftables rules (as kube-proxy's nftables
mode writes them) and its names. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain

from nodeagent.lab.layout import PODS, SERVICES, Object

DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True)
class Backend:
    address: str
    port: int


def ready(pod: Object) -> bool:
    """Return whether *pod*'s Ready condition holds and it is not being deleted."""
    conditions = pod["status"].get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        each["type"] == "Ready" and each["status"] == "True" for each in conditions
    )


def selected(service: Object, pods: Iterable[Object]) -> list[Object]:
    """Return the pods that are endpoints of *service*: selected, with addresses, and ready unless
    it publishes those that are not.
    """
    selector = service["spec"].get("selector", {}).items()
    everyone = service["spec"].get("publishNotReadyAddresses", False)
    namespace = service["metadata"]["namespace"]
    return [
        pod
        for pod in pods
        if selector
        and pod["metadata"]["namespace"] == namespace
        and selector <= pod["metadata"].get("labels", {}).items()
        and (everyone or ready(pod))
    ]


def target_port(port: Object, pod: Object) -> int | None:
    """Return the pod's port behind the Service's *port*; None if *pod* names no such port."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    ports = chain.from_iterable(container.get("ports", ()) for container in pod["spec"]["containers"])
    return next(
        (
            each["containerPort"]
            for each in ports
            if each.get("name") == target and each.get("protocol", "TCP") == port.get("protocol", "TCP")
        ),
        None,
    )


def backends(port: Object, pods: Iterable[Object], version: int) -> list[Backend]:
    """Return where the Service's *port* is served in IP *version* (4 or 6)."""
    found = []
    for pod in pods:
        number = target_port(port, pod)
        if number is not None:
            found += [
                Backend(each["ip"], number)
                for each in pod["status"]["podIPs"]
                if ip_address(each["ip"]).version == version
            ]
    return found


def ruleset(services: Sequence[Object], pods: Sequence[Object]) -> str:
    """Return the nftables input that replaces the node's rules: ClusterIPs to ready endpoints at
    random, the rest of the range refused.

    A pod that reaches itself through its Service (hairpin) is masqueraded, or it would see its own
    address as the peer; so is what leaves the cluster.
    """
    chains: list[str] = []
    elements: dict[int, list[str]] = {4: [], 6: []}
    for service in services:
        chosen = selected(service, pods)
        for address in service["spec"].get("clusterIPs", ()):
            if address == "None":
                continue
            version = ip_address(address).version
            for port in service["spec"]["ports"]:
                if found := backends(port, chosen, version):
                    protocol = port.get("protocol", "TCP").lower()
                    name = f"service-{len(chains)}"
                    chains.append(f" chain {name} {{ meta l4proto {protocol} {_balance(found, version)}; }}")
                    elements[version].append(f"{protocol} . {address} . {port['port']} : goto {name}")
    hairpin: dict[int, list[str]] = {4: [], 6: []}
    every = chain.from_iterable(pod["status"]["podIPs"] for pod in pods)
    for ip in dict.fromkeys(each["ip"] for each in every):
        hairpin[ip_address(ip).version].append(f"{ip} . {ip}")
    return "\n".join(
        [
            "table inet nodeagent-lab",
            "delete table inet nodeagent-lab",
            "table inet nodeagent-lab {",
            *chains,
            f" map services4 {{ type inet_proto . ipv4_addr . inet_service : verdict; {_elements(elements[4])} }}",
            f" map services6 {{ type inet_proto . ipv6_addr . inet_service : verdict; {_elements(elements[6])} }}",
            f" set hairpin4 {{ type ipv4_addr . ipv4_addr; {_elements(hairpin[4])} }}",
            f" set hairpin6 {{ type ipv6_addr . ipv6_addr; {_elements(hairpin[6])} }}",
            " chain refused { meta l4proto tcp reject with tcp reset; reject; }",  # ICMP alone would be rate-limited
            (
                " chain services { meta l4proto . ip daddr . th dport vmap @services4; meta l4proto . ip6 daddr . th "
                "dport vmap @services6; }"
            ),
            " chain prerouting { type nat hook prerouting priority dstnat; jump services; }",
            " chain output { type nat hook output priority -100; jump services; }",
            f" chain refuse {{ ip daddr {SERVICES[0]} goto refused; ip6 daddr {SERVICES[1]} goto refused; }}",
            " chain filter-forward { type filter hook forward priority filter; jump refuse; }",
            " chain filter-output { type filter hook output priority filter; jump refuse; }",
            " chain postrouting { type nat hook postrouting priority srcnat;",
            "  ip saddr . ip daddr @hairpin4 masquerade; ip6 saddr . ip6 daddr @hairpin6 masquerade;",
            (
                f"  ip saddr {PODS[0]} ip daddr != {PODS[0]} oifname eth0 masquerade; ip6 saddr {PODS[1]} ip6 daddr "
                f"!= {PODS[1]} oifname eth0 masquerade;"
            ),
            " }",
            "}",
            "",
        ]
    )


def _balance(found: Sequence[Backend], version: int) -> str:
    family = "ip" if version == 4 else "ip6"
    if len(found) == 1:
        address = found[0].address if version == 4 else f"[{found[0].address}]"
        return f"dnat {family} to {address}:{found[0].port}"
    choices = ", ".join(f"{index} : {each.address} . {each.port}" for index, each in enumerate(found))
    return f"dnat {family} to numgen random mod {len(found)} map {{ {choices} }}"


def _elements(values: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(values)} }};" if values else ""


def names(services: Iterable[Object], pods: Sequence[Object]) -> dict[str, tuple[str, ...]]:
    """Return every DNS name of the cluster (lower case, without the final dot) and its addresses.

    A Service answers with its ClusterIPs, a headless one with its endpoints and, for each, ``<pod
    name>.<service>``; a pod as ``<address with dashes>.<namespace>.pod``.
    """
    table: dict[str, tuple[str, ...]] = {}
    for service in services:
        metadata = service["metadata"]
        host = f"{metadata['name']}.{metadata['namespace']}.svc.{DOMAIN}"
        addresses = tuple(service["spec"].get("clusterIPs", ()))
        if addresses == ("None",):
            families = service["spec"].get("ipFamilies", ("IPv4", "IPv6"))
            found = {pod["metadata"]["name"]: _of(families, pod) for pod in selected(service, pods)}
            table |= {f"{name}.{host}": own for name, own in found.items()}
            addresses = tuple(chain.from_iterable(found.values()))
        table[host] = addresses
    for pod in pods:
        for each in pod["status"]["podIPs"]:
            dashed = each["ip"].replace(".", "-").replace(":", "-")
            table[f"{dashed}.{pod['metadata']['namespace']}.pod.{DOMAIN}"] = (each["ip"],)
    return table


def _of(families: Sequence[str], pod: Object) -> tuple[str, ...]:
    """Return the addresses of *pod* in these *families* ("IPv4", "IPv6")."""
    return tuple(each["ip"] for each in pod["status"]["podIPs"] if f"IPv{ip_address(each['ip']).version}" in families)
