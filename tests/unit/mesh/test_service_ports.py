"""Policies that are attached to a Service: their ports are the Service's, and their pods also those that
EndpointSlices name.
"""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Workload, policies_of
from nodeagent.mesh.entry_json import from_json, to_json
from nodeagent.policy.authorization import Authorizer, ConnectionFacts, Decision
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy
from nodeagent.resources.changes import AnyChange, Change
from tests.unit.mesh.test_compile import DOMAIN, gone, mesh, pod, policy, service
from tests.unit.mesh.test_endpoint_slices import slice_of

FORTH = [{"name": "http", "port": 80, "targetPort": "web"}]
TO_WEB = {"targetRefs": [{"kind": "Service", "name": "web"}]}


def attached(action: str, rule: dict[str, Any], **more: Any) -> Change:
    return policy("AuthorizationPolicy", {"action": action, "rules": [rule], **TO_WEB, **more})


def ports(*values: str, field: str = "ports") -> dict[str, Any]:
    return {"to": [{"operation": {field: list(values)}}]}


def condition(*values: str, field: str = "values") -> dict[str, Any]:
    return {"when": [{"key": "destination.port", field: list(values)}]}


def let_in(made: Mesh, uid: str = "uid-web") -> list[int]:
    """Return at which of some ports the pod lets a client in."""
    known = {each.key: each for each in made.entries().upserts}
    workload = known[f"workload/{uid}"]
    assert isinstance(workload, Workload)
    found = [from_json(to_json(each)) for each in policies_of(workload, known.get)]
    policies = [each for each in found if isinstance(each, AuthorizationPolicy)]
    authorizer = Authorizer.compile(policies, http=False, mesh=MeshSettings(DOMAIN))
    outcomes = {port: authorizer.connection(ConnectionFacts("", "", "", port)) for port in (80, 81, 8080, 9090)}
    return [port for port, outcome in outcomes.items() if isinstance(outcome, Decision) and outcome.allowed]


def mapped(*changes: AnyChange, **more: Any) -> Mesh:
    more = {"ports": FORTH, **more}
    return mesh(pod("web", "10.0.0.1"), service("web", **more), *changes)


@pytest.mark.parametrize("of", [ports, condition])
@pytest.mark.parametrize(
    ("action", "field", "values", "allowed"),
    [
        ("DENY", "", ("80",), [80, 81, 9090]),
        ("DENY", "", ("8080",), [80, 81, 8080, 9090]),
        ("DENY", "", ("80", "8080"), [80, 81, 9090]),
        ("ALLOW", "", ("80",), [8080]),
        ("ALLOW", "", ("8080",), []),
        ("DENY", "not", ("80",), [8080]),
        ("DENY", "not", ("8080",), []),
        ("ALLOW", "not", ("80",), [80, 81, 9090]),
        ("ALLOW", "not", ("8080",), [80, 81, 8080, 9090]),
    ],
)
def test_the_ports_of_a_services_policy_are_the_services(
    of: Any, action: str, field: str, values: tuple[str, ...], allowed: list[int]
) -> None:
    plain, negated = ("ports", "notPorts") if of is ports else ("values", "notValues")
    made = mapped(attached(action, of(*values, field=negated if field else plain)))
    assert let_in(made) == allowed


def test_where_the_service_leads_to_the_same_ports_the_policy_is_what_it_was() -> None:
    made = mapped(attached("DENY", ports("80")), ports=[{"name": "http", "port": 80}])
    assert let_in(made) == [81, 8080, 9090]
    assert [each.key for each in made.entries().upserts if isinstance(each, AuthorizationPolicy)] == [
        "authorization/default/p"
    ]


def test_a_policy_with_a_selector_means_the_pods_ports() -> None:
    chosen = policy("AuthorizationPolicy", {"action": "DENY", "rules": [ports("80")]})
    assert let_in(mapped(chosen)) == [81, 8080, 9090]


def test_a_name_is_another_number_in_another_pod() -> None:
    made = mapped(attached("DENY", ports("80")), pod("other", "10.0.0.2", port=9090))
    assert (let_in(made), let_in(made, "uid-other")) == ([80, 81, 9090], [80, 81, 8080])


def test_each_service_that_the_policy_names_counts() -> None:
    second = service("two", ports=[{"name": "x", "port": 80, "targetPort": 9090}], addresses=["10.96.0.8"])
    both = [{"kind": "Service", "name": name} for name in ("web", "two")]
    assert let_in(mapped(second, attached("DENY", ports("80")))) == [80, 81, 9090]
    assert let_in(mapped(second, attached("DENY", ports("80"), targetRefs=both))) == [80, 81]


def test_what_changes_on_either_side_is_in_force_and_leaves_nothing() -> None:
    made = mapped(attached("DENY", ports("80")))
    assert let_in(made) == [80, 81, 9090]
    made.apply([attached("DENY", {**ports("80"), "from": [{"source": {"namespaces": ["x"]}}]})])
    assert let_in(made) == [80, 81, 8080, 9090]
    made.apply([attached("DENY", ports("80", "81"))])
    assert let_in(made) == [80, 81, 9090]
    made.apply([service("web", ports=[{"name": "http", "port": 80, "targetPort": 9090}])])
    assert let_in(made) == [80, 81, 8080]
    made.apply([gone(attached("DENY", ports("80")))])
    assert let_in(made) == [80, 81, 8080, 9090]
    assert not any(isinstance(each, AuthorizationPolicy) for each in made.entries().upserts)
    assert not made._translated._policies


def test_a_number_that_is_no_port_of_the_service_is_told() -> None:
    (row,) = mapped(attached("DENY", ports("80", "8080"))).policies()
    assert row["state"] == "in force; ports: 8080: no port of Service web: nobody's"
    (row,) = mapped(attached("DENY", ports("80"))).policies()
    assert row["state"] == "in force"


def test_a_translated_policy_that_is_not_known_is_closed_in_its_name() -> None:
    made = mapped(attached("DENY", ports("80")))
    (workload,) = [each for each in made.entries().upserts if isinstance(each, Workload)]
    (closed,) = policies_of(workload, lambda key: None)
    assert isinstance(closed, AuthorizationPolicy)
    assert (closed.name, closed.refused) == ("p", "authorization")


# -- pods that no selector names --


def test_a_service_without_a_selector_takes_its_policies_to_the_pods_in_its_slices() -> None:
    """Input: a slice names a pod of this node, is changed, and its Service goes and comes. Verdict: the policy holds
    at the pod while the slice names it, at the port that the slice says.
    """
    rule = attached("DENY", ports("80"), targetRefs=[{"kind": "Service", "name": "db"}])
    alone = service("db", None, ports=FORTH)
    made = mesh(pod("web", "10.0.0.1"), alone, rule)
    (row,) = made.policies()
    assert (row["pods"], row["state"]) == (0, "no effect: no pod of this node is meant")
    for change, allowed in (
        (slice_of("a", "10.0.0.1", of="db", port=8080), [80, 81, 9090]),
        (slice_of("a", "10.0.0.1", of="db", port=8080, conditions={"ready": False}), [80, 81, 9090]),
        (slice_of("a", "10.0.0.1", of="db", port=9090), [80, 81, 8080]),
        (slice_of("a", "10.0.0.9", of="db", port=9090), [80, 81, 8080, 9090]),
        (slice_of("a", "10.0.0.1", of="db", port=9090), [80, 81, 8080]),
        (gone(alone), [80, 81, 8080, 9090]),
        (alone, [80, 81, 8080]),
        (gone(slice_of("a")), [80, 81, 8080, 9090]),
    ):
        made.apply([change])
        assert let_in(made) == allowed
    made.apply([slice_of("a", "10.0.0.1", of="db", port=8080)])
    (row,) = made.policies()
    assert (row["pods"], row["state"]) == (1, "in force")
    made.apply([gone(pod("web")), pod("late", "10.0.0.1")])
    assert let_in(made, "uid-late") == [80, 81, 9090]


def test_a_slice_gives_no_policy_to_a_pod_of_another_namespace() -> None:
    """Input: who may write slices of one namespace names a pod of another one. Verdict: no policy of his is there."""
    rule = attached("DENY", {}, targetRefs=[{"kind": "Service", "name": "db"}])
    made = mesh(pod("web", "10.0.0.1", namespace="other"), service("db", None), slice_of("a", "10.0.0.1"), rule)
    assert let_in(made) == [80, 81, 8080, 9090]
