"""NetworkPolicies as nftables rules: whom a policy isolates, and what passes; by the rules' own
words, and nft takes them all.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.lab.network_policies import Cluster, ruleset
from nodeagent.resources.load import parse


def pod(name: str, number: int, *, namespace: str = "default", node: str = "node1", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "ports": [{"containerPort": 8000 + number, "name": "web"}]}],
        },
        "status": {"podIPs": [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number}"}], "phase": "Running", **status},
    }


CLUSTER = Cluster.of(
    [
        pod("a", 1),
        pod("b", 2),
        pod("c", 3, namespace="blue"),
        pod("d", 4, node="node2"),
        pod("ended", 5, phase="Succeeded"),
    ],
    [{"metadata": {"name": "default"}}, {"metadata": {"name": "blue", "labels": {"colour": "blue"}}}],
)


BLOCK = "{ipBlock: {cidr: 172.16.0.0/12, except: [172.17.0.0/16]}}"


def policy(text: str, selector: str = "{matchLabels: {app: a}}") -> dict[str, Any]:
    """Return a NetworkPolicy of namespace default as the lab keeps it: validated."""
    document = (
        f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: "
        f"{{podSelector: {selector}, {text}}}\n"
    )
    (found,) = parse(document, "test")
    value: dict[str, Any] = json.loads(json.dumps(found.resource.dump()))
    value["metadata"]["namespace"] = "default"
    return value


def chain(rules: str, name: str) -> list[str]:
    """Return the statements of the chain that the jump for *name* (as it stands in the forward chain) leads to."""
    target = next(part.split(" jump ")[1] for part in rules.split("; ") if part.strip().startswith(f"{name} jump"))
    line = next(line for line in rules.splitlines() if line.startswith(f" chain {target} "))
    return line.partition("{ ")[2].removesuffix(" }").strip().removesuffix(";").split("; ")


@pytest.mark.parametrize(
    ("text", "jump", "passes"),
    [
        ("policyTypes: [Ingress]", "ip daddr 10.0.0.1", []),
        ("ingress: [{}]", "ip6 daddr fd00::1", ["return"]),
        (
            "ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]",
            "ip daddr 10.0.0.1",
            ["ip saddr 10.0.0.2 return", "ip6 saddr fd00::2 return"],
        ),
        ("ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]", "ip daddr 10.0.0.1", []),
        (
            "ingress: [{from: [{namespaceSelector: {matchLabels: {colour: blue}}}], ports: [{port: 80}]}]",
            "ip daddr 10.0.0.1",
            ["ip saddr 10.0.0.3 tcp dport 80 return", "ip6 saddr fd00::3 tcp dport 80 return"],
        ),
        (
            (
                "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}, "
                "podSelector: {matchLabels: {app: b}}}]}]"
            ),
            "ip daddr 10.0.0.1",
            [],
        ),
        (
            (
                "ingress: "
                f"[{{from: [{BLOCK}], ports: [{{port: web}}, {{port: 53, protocol: UDP}}, {{port: 90, endPort: 99}}]}}]"
            ),
            "ip daddr 10.0.0.1",
            [
                "ip saddr 172.16.0.0/12 ip saddr != { 172.17.0.0/16 } tcp dport 8001 return",
                "ip saddr 172.16.0.0/12 ip saddr != { 172.17.0.0/16 } udp dport 53 return",
                "ip saddr 172.16.0.0/12 ip saddr != { 172.17.0.0/16 } tcp dport 90-99 return",
            ],
        ),
        ("ingress: [{ports: [{port: other}, {protocol: SCTP}]}]", "ip daddr 10.0.0.1", ["meta l4proto sctp return"]),
        ("policyTypes: [Egress]", "ip saddr 10.0.0.1", []),
        (
            "egress: [{to: [{podSelector: {matchLabels: {app: d}}}], ports: [{port: web}]}]",
            "ip6 saddr fd00::1",
            ["ip daddr 10.0.0.4 tcp dport 8004 return", "ip6 daddr fd00::4 tcp dport 8004 return"],
        ),
        ("egress: [{to: [{ipBlock: {cidr: 'fd00::/8'}}]}]", "ip saddr 10.0.0.1", ["ip6 daddr fd00::/8 return"]),
    ],
)
def test_what_passes(text: str, jump: str, passes: list[str]) -> None:
    assert chain(ruleset([policy(text)], CLUSTER, "node1"), jump) == [*passes, "drop"]


def test_a_named_port_that_everybody_may_reach_is_each_pods_own() -> None:
    lines = chain(
        ruleset([policy("egress: [{ports: [{port: web}, {port: 53}]}]")], CLUSTER, "node1"), "ip saddr 10.0.0.1"
    )
    assert lines[0] == "tcp dport 53 return"
    assert {f"ip daddr 10.0.0.{number} tcp dport {8000 + number} return" for number in (1, 2, 3, 4)} <= set(lines)


def test_several_policies_let_through_what_either_does() -> None:
    both = [policy("ingress: [{ports: [{port: 80}]}]"), policy("ingress: [{ports: [{port: 81}]}]", "{}")]
    rules = ruleset(both, CLUSTER, "node1")
    assert chain(rules, "ip daddr 10.0.0.1") == ["tcp dport 80 return", "tcp dport 81 return", "drop"]
    assert chain(rules, "ip daddr 10.0.0.2") == ["tcp dport 81 return", "drop"]
    # the other node's, or ended
    assert " jump " not in "".join(line for line in rules.splitlines() if "10.0.0.4" in line)


def test_by_default_a_policy_has_a_say_on_egress_only_if_it_speaks_of_it() -> None:
    assert "ip saddr 10.0.0.1 jump" not in ruleset([policy("ingress: []")], CLUSTER, "node1")
    assert "ip saddr 10.0.0.1 jump" in ruleset([policy("egress: [{}]")], CLUSTER, "node1")


def test_replies_and_a_pod_itself_pass_first() -> None:
    (line,) = (
        line
        for line in ruleset([policy("policyTypes: [Ingress, Egress]")], CLUSTER, "node1").splitlines()
        if line.startswith(" chain forward")
    )
    assert (
        line.index("ct state established,related accept")
        < line.index("ip saddr 10.0.0.1 ip daddr 10.0.0.1 accept")
        < line.index(" jump ")
    )


@pytest.mark.parametrize(
    "text",
    [
        "ingress: [{}]",
        "policyTypes: [Ingress, Egress]",
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]",
    ],
)
def test_nft_takes_the_rules(text: str) -> None:
    for policies in ([], [policy(text, "{}")]):
        done = subprocess.run(
            ["unshare", "--net", "nft", "-f", "-"],
            input=ruleset(policies, CLUSTER, "node1"),
            text=True,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]", "cidr"),
        ("ingress: [{from: [{}]}]", "ipBlock"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]", "ipBlock"),
        ("ingress: [{ports: [{port: 90, endPort: 80}]}]", "endPort"),
        ("ingress: [{ports: [{port: web, endPort: 80}]}]", "endPort"),
        ("policyTypes: [Both]", "policyTypes"),
        ("ingres: []", "ingres"),
    ],
)
def test_a_wrong_policy_is_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(ResourceError, match=field):
        policy(text)
