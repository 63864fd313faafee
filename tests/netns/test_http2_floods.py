"""Clients of HTTP/2 that mean no good, at agents that run: each is told why it is left, that is in
flows and counted, and nobody else notices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from nodeagent.lab import Lab
from tests.netns.world import (
    APPS,
    QUICK,
    account,
    admin,
    bracketed,
    client,
    cluster,
    cluster_ip,
    curl,
    growth,
    memory,
    server,
    workers,
)
from tests.waiting import eventually

FLOODS: Final = str(APPS / "floods.py")
CALM: Final = 11
"""ENHANCE_YOUR_CALM (RFC 9113 section 7)."""
WAYS: Final = (
    "rapid-reset",
    "made-you-reset",
    "data-behind-the-end",
    "continuation",
    "large-head",
    "settings",
    "windows",
    "ping",
    "priority",
    "empty-data",
    "window-update",
)
MUCH: Final = 64 << 20
"""Bytes by which the workers may have grown behind any of them."""
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("hostile", "node1", account="client"),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-floods", TEXT, agent=QUICK) as made:
        yield made


def argv(lab: Lab, name: str, way: str, version: int = 4) -> list[str]:
    return [sys.executable, FLOODS, cluster_ip(lab, name, version), "80", way]


def rows(lab: Lab, reason: str) -> list[dict[str, Any]]:
    return [row for row in admin(lab, "node1", "/flows")["flows"] if row["reason"] == reason]


def fine(lab: Lab, name: str) -> bool:
    """Say whether another client of HTTP/2 is served."""
    url = f"http://{bracketed(cluster_ip(lab, name))}/about"
    done = curl(lab, "client", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}", url)
    return done.stdout == "200"


@pytest.mark.parametrize("name", ["local", "remote"])
@pytest.mark.parametrize("way", WAYS)
def test_a_flood_is_told_why_and_nobody_else_notices(lab: Lab, way: str, name: str) -> None:
    assert fine(lab, name)
    counted = growth(lab)
    before = workers(lab, "node1")
    held = memory(before)
    done = lab.exec("hostile", argv(lab, name, way), timeout=60)
    told = json.loads(done.stdout)
    assert told["code"] == CALM, told
    assert fine(lab, name)
    assert workers(lab, "node1") == before
    assert memory(before) - held < MUCH
    counted.comes_to(1, "nodeagent_refused_connections_total", reason="http2_broken")


def test_answers_that_nobody_takes_end_the_connection(lab: Lab) -> None:
    before = workers(lab, "node1")
    held = memory(before)
    done = lab.exec("hostile", argv(lab, "local", "stall"), timeout=60)
    assert json.loads(done.stdout)["code"] == CALM
    assert fine(lab, "local")
    assert workers(lab, "node1") == before
    assert memory(before) - held < MUCH


def test_a_flood_over_ipv6(lab: Lab) -> None:
    done = lab.exec("hostile", argv(lab, "local", "ping", version=6), timeout=60)
    assert json.loads(done.stdout)["code"] == CALM


def test_flows_say_who_flooded(lab: Lab) -> None:
    known = {row["id"] for row in rows(lab, "http2_broken")}
    lab.exec("hostile", argv(lab, "local", "rapid-reset"), timeout=60)
    (row,) = eventually(lambda: [row for row in rows(lab, "http2_broken") if row["id"] not in known], "its row")
    assert (row["source"], row["verdict"], row["protocol"]) == ("default/hostile", "error", "http2")
