"""A policy that stands in several places: which one is in force, and what is told of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

from nodeagent.resources import security
from nodeagent.resources.changes import Change
from nodeagent.resources.precedence import Origin, Precedence
from nodeagent.resources.security import PeerAuthentication, Policy

CLUSTER = Origin(0, PurePath("/state/objects/z.json"))
FIRST, SECOND = Origin(1, PurePath("/a/one.yaml")), Origin(1, PurePath("/a/two.yaml"))


def policy(name: str = "all", mode: str = "STRICT") -> Policy:
    return security.parse(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"mtls": {"mode": mode}},
        }
    )


def told(changes: list[Change]) -> list[str]:
    words = []
    for change in changes:
        if change.object is None:
            words.append(f"-{change.name}")
        else:
            assert isinstance(change.object, Policy)
            assert isinstance(change.object.spec, PeerAuthentication)
            words.append(f"{change.name}={change.object.spec.mode} in {PurePath(change.file).name}")
    return words


def test_the_clusters_own_goes_before_files_and_a_file_before_another_by_name() -> None:
    precedence = Precedence()
    assert told(precedence.claim(SECOND, [policy(mode="DISABLE")])) == ["all=DISABLE in two.yaml"]
    assert told(precedence.claim(FIRST, [policy(mode="PERMISSIVE")])) == ["all=PERMISSIVE in one.yaml"]
    assert told(precedence.claim(CLUSTER, [policy()])) == ["all=STRICT in z.json"]
    assert told(precedence.claim(FIRST, [])) == []
    assert told(precedence.claim(CLUSTER, [])) == ["all=DISABLE in two.yaml"]
    assert told(precedence.claim(SECOND, [])) == ["-all"]


def test_what_is_right_goes_before_what_stands_in_for_a_wrong_document() -> None:
    precedence = Precedence()
    assert told(precedence.claim(SECOND, [policy(mode="PERMISSIVE")])) == ["all=PERMISSIVE in two.yaml"]
    assert told(precedence.claim(CLUSTER, [replace(policy(), refused="spec: wrong")])) == []
    assert told(precedence.claim(SECOND, [])) == ["all=STRICT in z.json"]


def test_only_what_differs_is_a_change() -> None:
    precedence = Precedence()
    precedence.claim(FIRST, [policy("one"), policy("two")])
    assert told(precedence.claim(FIRST, [policy("one"), policy("two")])) == []
    assert told(precedence.claim(SECOND, [policy("one", "DISABLE")])) == []
    assert told(precedence.claim(FIRST, [policy("two", "DISABLE")])) == [
        "one=DISABLE in two.yaml",
        "two=DISABLE in one.yaml",
    ]


def test_the_displaced_are_told_with_what_is_in_force() -> None:
    precedence = Precedence()
    for origin in (SECOND, CLUSTER, FIRST):
        precedence.claim(origin, [policy()])
    told_of = [(PurePath(each.file).name, each.error, each.displaced) for each in precedence.displaced()]
    why = f"metadata.name: 'all': stands in {CLUSTER.file} too, and that one is in force"
    assert told_of == [("one.yaml", why, True), ("two.yaml", why, True)]
    precedence.claim(CLUSTER, [])
    assert [PurePath(each.file).name for each in precedence.displaced()] == ["two.yaml"]
    precedence.claim(FIRST, [])
    assert list(precedence.displaced()) == []
