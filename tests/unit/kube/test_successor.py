"""Which pod an agent takes for its successor."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.kube.successor import is_coming, is_forsaken
from nodeagent.resources.objects import PodObject, parse
from nodeagent.vocabulary import PodUid

OWN = "own"


def agent(uid: str, **changes: Any) -> dict[str, Any]:
    """Return an agent's pod, as its DaemonSet makes it on a node; *changes* of its fields."""
    owner = {"kind": "DaemonSet", "name": changes.get("maker", "nodeagent"), "controller": True}
    metadata = {
        "name": f"nodeagent-{uid}",
        "namespace": changes.get("namespace", "nodeagent-system"),
        "uid": uid,
        "creationTimestamp": changes.get("created", "2026-11-29T18:00:00Z"),
        "ownerReferences": [owner] if changes.get("maker", "nodeagent") else [],
        **({"deletionTimestamp": "2026-11-29T19:00:00Z"} if changes.get("terminating") else {}),
    }
    spec = {"nodeName": "node1", "hostNetwork": True, "containers": [{"name": "agent"}]}
    status = {"phase": changes.get("phase", "Running")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def pods(*documents: dict[str, Any]) -> dict[PodUid, PodObject]:
    found = [parse(each) for each in documents]
    return {each.uid: each for each in found if isinstance(each, PodObject)}


@pytest.mark.parametrize(
    ("other", "coming"),
    [
        ({"phase": "Pending"}, True),
        ({}, True),
        ({"created": "2026-11-29T18:02:12Z"}, True),
        ({"created": "2026-11-29T17:59:59Z"}, False),  # the one before, which drains or was taken over from
        ({"phase": "Pending", "terminating": True}, False),
        ({"phase": "Failed"}, False),
        ({"phase": "Succeeded"}, False),
        ({"maker": "another"}, False),
        ({"namespace": "default"}, False),
        ({"maker": ""}, False),
    ],
)
@pytest.mark.parametrize("terminating", [False, True])
def test_a_successor_is_of_the_same_daemon_set_and_made_later(
    other: dict[str, Any], coming: bool, terminating: bool
) -> None:
    """Input: the agent's own pod, which may have been told to end, and another one of its node."""
    assert is_coming(PodUid(OWN), pods(agent(OWN, terminating=terminating), agent("other", **other))) is coming


def test_who_does_not_know_its_own_pod_expects_nobody() -> None:
    assert not is_coming(PodUid(""), pods(agent("other")))
    assert not is_coming(PodUid(OWN), pods(agent("other")))
    assert not is_coming(PodUid(OWN), pods(agent(OWN, maker=""), agent("other", maker="")))


OTHERS = pytest.mark.parametrize(
    ("others", "forsaken"),
    [
        ([], True),
        ([{}], False),
        ([{"phase": "Pending"}], False),
        ([{"created": "2026-11-29T17:59:59Z"}], False),  # whoever it is, it has the node
        ([{"terminating": True}], True),
        ([{"terminating": True}, {"phase": "Pending"}], False),
        ([{"phase": "Failed"}], True),
        ([{"maker": "another"}, {"namespace": "default"}], True),
    ],
)


@OTHERS
@pytest.mark.parametrize(
    ("terminating", "came", "may_be"),
    [
        (True, False, True),  # it was told to end: nobody is made while it ends
        (True, True, True),
        (False, True, True),  # rolled back: it is the right one again, and nobody is made beside it
        (False, False, False),  # nobody is there yet to have the node
    ],
)
def test_who_drains_is_forsaken_when_no_other_agent_is_there(
    others: list[dict[str, Any]], forsaken: bool, terminating: bool, came: bool, may_be: bool
) -> None:
    """Input: the *others* of its node; the agent's own pod, which was told to end or not; a successor came, or not."""
    there = [agent(f"other-{number}", **other) for number, other in enumerate(others)]
    own = agent(OWN, terminating=terminating)
    assert is_forsaken(PodUid(OWN), pods(own, *there), came=came) is (forsaken and may_be)
    assert not is_forsaken(PodUid(""), pods(*there), came=came)
    assert not is_forsaken(PodUid(OWN), pods(agent(OWN, terminating=True, maker=""), *there), came=came)
