"""Which rows of ``nodeagent flows`` are asked for, and how they read."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.cli.flow_rows import Filter, last, readable

ROW: dict[str, Any] = {
    "id": "1-1",
    "opened": 100.0,
    "closed": 104.25,
    "source": "shop/web-1",
    "source_identity": "spiffe://cluster.local/ns/shop/sa/web",
    "destination": "data/db-1:3306",
    "destination_identity": "spiffe://cluster.local/ns/data/sa/db",
    "service": "db.data.svc.cluster.local",
    "verdict": "deny",
    "reason": "policy_denied",
    "policy": "data/only-web",
    "codes": [200, 200, 403],
    "probe": False,
}
OUTSIDE = {
    **ROW,
    "source": "10.0.0.1:4000",
    "source_identity": "",
    "destination": "[fd00::5]:80",
    "destination_identity": "",
    "service": "PassthroughCluster",
}


@pytest.mark.parametrize(
    ("row", "fields", "taken"),
    [
        (ROW, {}, True),
        *(
            (ROW, {"source": name}, True)
            for name in ("web-1", "shop/web-1", "web-*", "shop/*", "spiffe://cluster.local/ns/shop/sa/web")
        ),
        *((ROW, {"source": name}, False) for name in ("web", "db-1", "data/web-1")),
        *((ROW, {"destination": name}, True) for name in ("db-1", "data/db-1", "db-1:3306", "data/db-1:3306")),
        *((ROW, {"destination": name}, True) for name in ("db", "db.data", "data/db", "db.data.svc.cluster.local")),
        *((ROW, {"destination": name}, False) for name in ("web-1", "shop/db", "3306")),
        *((OUTSIDE, {"source": name}, True) for name in ("10.0.0.1", "10.0.*")),
        *((OUTSIDE, {"destination": name}, True) for name in ("fd00::5", "PassthroughCluster", "fd00::*")),
        *((ROW, {"namespace": name}, True) for name in ("shop", "data")),
        *(
            (row, {"namespace": name}, False)
            for row, name in ((ROW, "web-1"), (OUTSIDE, "shop"), (OUTSIDE, "10.0.0.1"))
        ),
        (ROW, {"verdicts": frozenset({"deny", "error"})}, True),
        (ROW, {"verdicts": frozenset({"allow"})}, False),
        *((ROW, {"codes": codes}, True) for codes in (("403",), ("4xx",), ("500", "2xx"))),
        *((ROW, {"codes": codes}, False) for codes in (("404",), ("5xx",))),
        *((ROW, {"since": since}, taken) for since, taken in ((104.0, True), (104.5, False))),
        ({**ROW, "closed": None}, {"since": 1e9}, True),
        ({**ROW, "probe": True}, {}, False),
        ({**ROW, "probe": True}, {"probes": True}, True),
    ],
)
def test_what_is_asked_for(row: dict[str, Any], fields: dict[str, Any], taken: bool) -> None:
    assert Filter(**fields).takes(row) is taken


def test_the_last_are_those_that_ended_last_and_the_open_ones() -> None:
    rows = [
        {"id": name, "opened": opened, "closed": closed}
        for name, opened, closed in (("a", 1, None), ("b", 2, 9), ("c", 3, 4), ("d", 0, None))
    ]
    assert [row["id"] for row in last(rows, 3)] == ["b", "d", "a"]
    assert [row["id"] for row in last(rows, 0)] == ["c", "b", "d", "a"]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, {"lasted": "4.2s", "to": "db.data", "told": "deny: policy_denied data/only-web"}),
        ({"closed": None, "verdict": "allow", "reason": ""}, {"lasted": "open", "told": "allow"}),
        ({"closed": 700.0, "policy": "", "times": 12}, {"lasted": "10m", "told": "deny: policy_denied (12 times)"}),
        (
            {"service": "", "verdict": "error", "reason": "connect_failed", "policy": ""},
            {"to": "data/db-1:3306", "told": "error: connect_failed"},
        ),
    ],
)
def test_what_a_row_reads_like(change: dict[str, Any], shown: dict[str, str]) -> None:
    read = readable({**ROW, **change})
    assert {key: read[key] for key in shown} == shown
