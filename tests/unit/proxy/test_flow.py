"""What a worker remembers of its connections for ``nodeagent flows``: how each fared, and which of those that ended."""

from __future__ import annotations

import pytest

from nodeagent import errors
from nodeagent.errors import CONNECT_FAILED, JWT_REFUSED, POLICY_DENIED, Reason
from nodeagent.proxy import recent
from nodeagent.proxy.client_guard import denied
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.recent import Recent
from nodeagent.proxy.view import Resolved
from nodeagent.vocabulary import Address, PodUid


def connection(uid: str = "a", *, probe: bool = False) -> Connection:
    target = Resolved(Address("10.0.0.2"), 80, "http", None, ())
    made = Connection(
        PodState(PodUid(uid), 1, "", lambda family, count: None),
        "inbound",
        Peer("10.0.0.1", 1, "", "none", None),
        target,
        0.0,
    )
    made.probe = probe
    return made


@pytest.mark.parametrize(
    ("answers", "verdict", "codes", "reason", "policy"),
    [
        ([], "allow", [], "", "ns/allow"),
        ([(200, None), (404, None)], "allow", [200, 404], "", "ns/allow"),
        ([(403, denied("ns/p", 0))], "deny", [403], "policy_denied", "ns/p"),
        ([(403, POLICY_DENIED), (401, JWT_REFUSED)], "deny", [403, 401], "jwt_refused", ""),
        ([(503, CONNECT_FAILED)] * 6, "error", [503] * 4, "connect_failed", ""),
        ([(200, None), (403, denied("ns/p", 0)), (200, None)], "mixed", [200, 403, 200], "policy_denied", "ns/p"),
        ([(503, CONNECT_FAILED), (403, POLICY_DENIED)], "mixed", [503, 403], "policy_denied", ""),
        ([(0, CONNECT_FAILED), (999, None)], "mixed", [0, 999], "connect_failed", ""),
    ],
)
def test_how_requests_fared(
    answers: list[tuple[int, Reason | None]], verdict: str, codes: list[int], reason: str, policy: str
) -> None:
    one = connection()
    assert one.flow(1)["verdict"] == "pending"
    one.protocol, one.policy = "http", "ns/allow"
    for status, why in answers:
        one.answered(status, why, 10, 20)
    row = one.flow(1)
    assert (row["verdict"], row["codes"], row["reason"], row["policy"]) == (verdict, codes, reason, policy)
    assert (row["requests"], row["received"], row["sent"]) == (len(answers), 10 * len(answers), 20 * len(answers))


def test_who_says_no_denies_and_what_fails_is_an_error() -> None:
    reasons = [
        reason for reason in vars(errors).values() if isinstance(reason, Reason) and reason.status in (401, 403, 429)
    ]
    assert len(reasons) > 6
    # CONNECT is refused with Envoy's status, and by no policy
    failing = {"connect_refused", "external_error", "external_missing"}
    assert {reason.code for reason in reasons if not reason.denies} == failing


def test_a_refused_probe_is_a_connection_to_be_shown() -> None:
    one = connection(probe=True)
    one.refused(CONNECT_FAILED)
    assert one.probe, "a probe that fails is a probe"
    one.refused(POLICY_DENIED)
    assert not one.probe


def test_a_pod_pushes_out_its_own_connections_and_nobody_elses() -> None:
    kept = Recent()
    quiet = connection("quiet")
    kept.add(quiet)
    busy = [connection("busy") for _ in range(2000)]
    for one in busy:
        kept.add(one)
    for _ in range(100):
        kept.add(connection("busy", probe=True))
    told = list(kept)
    assert quiet in told
    assert [one for one in told if one.pod.uid == "busy" and not one.probe] == busy[-recent.KEPT // 2 :]
    assert len([one for one in told if one.probe]) == recent.PROBES
    kept.forget("busy")
    assert list(kept) == [quiet]


def test_many_pods_share_the_room_and_each_has_some() -> None:
    kept = Recent()
    for _ in range(20):
        for pod in range(200):
            kept.add(connection(str(pod)))
    assert len(list(kept)) == 200 * recent.FEWEST
