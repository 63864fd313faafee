"""What may pass where no proxy looks: never what a policy protects, unless the setting says so."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.entries import DeclaredProbe, Entry, Workload
from nodeagent.mesh.protection import CLOSED, MAX_PORTS, OPEN, Protection, protection
from nodeagent.policy.model import Action, AuthorizationPolicy, MtlsMode, RateLimit, RequestAuthentication
from nodeagent.vocabulary import PodUid, SpiffeId, WhenDead

WORKLOAD = Workload(
    uid=PodUid("u"), pod="p", namespace="n", node="node1", addresses=(), service_account="a", identity=SpiffeId("spiffe://t/ns/n/sa/a"),
    workload="w", app="", version="", canonical_service="w", canonical_revision="", ready=True, enrolled=True,
)  # fmt: skip
PROTECTS: dict[str, tuple[Entry, bool]] = {
    "ALLOW": (AuthorizationPolicy("n", "a"), True),
    "DENY": (AuthorizationPolicy("n", "d", "DENY"), True),
    "CUSTOM": (AuthorizationPolicy("n", "c", "CUSTOM", provider="p"), True),
    "AUDIT": (AuthorizationPolicy("n", "t", "AUDIT"), False),
    "dry run": (AuthorizationPolicy("n", "r", "DENY", dry_run=True), False),
    "JWT": (RequestAuthentication("n", "j"), True),
    "rate limit": (RateLimit("n", "l"), True),
}
modes = st.sampled_from(get_args(MtlsMode))
policies = st.lists(
    st.one_of(
        st.builds(
            AuthorizationPolicy, st.just("n"), st.just("p"), st.sampled_from(get_args(Action)), dry_run=st.booleans()
        ),
        st.builds(RequestAuthentication, st.just("n"), st.just("p")),
        st.builds(RateLimit, st.just("n"), st.just("p")),
    ),
    max_size=4,
)
port_modes = st.dictionaries(st.integers(1, 9), modes, max_size=3).map(lambda ports: tuple(ports.items()))
probes = st.lists(
    st.builds(DeclaredProbe, st.sampled_from(("http", "tcp", "grpc")), st.integers(1, 9)), max_size=3
).map(tuple)
workloads = st.builds(
    lambda mode, ports, probed: replace(WORKLOAD, mtls=mode, port_mtls=ports, probes=probed), modes, port_modes, probes
)


@pytest.mark.parametrize("kind", PROTECTS)
def test_each_kind_of_policy(kind: str) -> None:
    policy, wanted = PROTECTS[kind]
    assert protection(WORKLOAD, [policy], "policy") == (CLOSED if wanted else OPEN)


def test_mtls_protects_by_port_where_nothing_else_does() -> None:
    strict = replace(WORKLOAD, mtls="STRICT", port_mtls=((80, "PERMISSIVE"), (81, "DISABLE")))
    assert protection(strict, [], "policy") == Protection(True, True, ((80, False), (81, False)))
    assert protection(replace(WORKLOAD, port_mtls=((80, "STRICT"), (81, "DISABLE"))), [], "policy") == Protection(
        False, False, ((80, True),)
    )


@given(workloads, policies)
def test_what_is_protected_is_refused_and_nothing_else(workload: Workload, applied: list[Entry]) -> None:
    """Against the definition: some policy can refuse, or the mode at that port is STRICT."""
    telling = [
        each for each in applied if isinstance(each, AuthorizationPolicy) and (each.action == "AUDIT" or each.dry_run)
    ]
    governed = len(telling) < len(applied)
    found = protection(workload, applied, "policy")
    for port in range(1, 10):
        assert dict(found.ports).get(port, found.dead) == (governed or workload.mtls_at(port) == "STRICT")
    assert found.dead == found.unredirected == (governed or workload.mtls == "STRICT")
    assert all(protection(workload, order, "policy") == found for order in permutations(applied))


@given(workloads, policies, st.sampled_from(get_args(WhenDead)))
def test_the_node_may_probe_what_is_declared_and_refused_and_nothing_else(
    workload: Workload, applied: list[Entry], setting: WhenDead
) -> None:
    found = protection(workload, applied, setting)
    refused = {probe.port for probe in workload.probes if dict(found.ports).get(probe.port, found.dead)}
    assert set(found.probed) == (refused if setting == "policy" else set())


@given(workloads, policies, st.sampled_from(get_args(WhenDead)))
def test_the_setting_is_about_a_dead_daemon_alone(workload: Workload, applied: list[Entry], setting: WhenDead) -> None:
    """What gets around a living daemon is refused all the same; ``pass`` and ``refuse`` know no exceptions."""
    found = protection(workload, applied, setting)
    assert found.unredirected == protection(workload, applied, "policy").unredirected
    if setting != "policy":
        assert (found.dead, found.ports, found.probed) == (setting == "refuse", (), ())


@pytest.mark.parametrize("strict", [True, False])
def test_a_pod_with_more_ports_than_may_be_told_apart_is_refused_as_a_whole(strict: bool) -> None:
    """Input: ports that PeerAuthentications set apart from their pod, and ports that the kubelet probes, as many as may
    be, and one more. Verdict: as much as one pod may have of the node's map; what is more opens nothing.
    """
    mode: MtlsMode = "STRICT" if strict else "PERMISSIVE"
    other: MtlsMode = "PERMISSIVE" if strict else "STRICT"
    for count, expected in ((MAX_PORTS, MAX_PORTS), (MAX_PORTS + 1, 0)):
        ports = tuple((port, other) for port in range(1, count + 1))
        found = protection(replace(WORKLOAD, mtls=mode, port_mtls=ports), [], "policy")
        assert len(found.ports) == expected
        assert expected or found == replace(CLOSED, crowded=count)
    probes = tuple(DeclaredProbe("tcp", port) for port in range(1, MAX_PORTS + 2))
    crowded = replace(CLOSED, crowded=MAX_PORTS + 1)
    assert protection(replace(WORKLOAD, mtls="STRICT", probes=probes), [], "policy") == crowded


@given(workloads, policies, policies)
def test_more_policies_never_open(workload: Workload, some: list[Entry], more: list[Entry]) -> None:
    before, after = protection(workload, some, "policy"), protection(workload, [*some, *more], "policy")
    assert all(
        dict(after.ports).get(port, after.dead) >= dict(before.ports).get(port, before.dead) for port in range(1, 10)
    )
