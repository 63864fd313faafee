"""Dashboards name metrics and labels that there are, and can be read."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from nodeagent.telemetry.metrics import (
    CA_LOOKS,
    CA_REQUESTS,
    HTTP_FAMILIES,
    MESSAGE_FAMILIES,
    PLAIN,
    REQUESTS,
    TCP_FAMILIES,
    WEBHOOK_REGISTRATIONS,
    WEBHOOK_REVIEWS,
)
from tests import dashboards

NODE = dashboards.load("node.json")
DECLARED = {
    metric.name: metric for metric in (*PLAIN.values(), REQUESTS, *HTTP_FAMILIES, *TCP_FAMILIES, *MESSAGE_FAMILIES)
}
BY_PROMETHEUS = frozenset({"instance"})
SERVICES = {each.name for each in (CA_REQUESTS, CA_LOOKS, WEBHOOK_REVIEWS, WEBHOOK_REGISTRATIONS)}
ELSEWHERE = {"istio_build", "nodeagent_kernel_http_unknown_total", *SERVICES}
"""For Istio's dashboards, of authority and webhook, and what belongs beside Istio's own series."""


@pytest.mark.parametrize("title", dashboards.queries(NODE))
def test_every_query_names_metrics_and_labels_that_there_are(title: str) -> None:
    query = dashboards.queries(NODE)[title]
    named = dict(dashboards.metrics(query))
    assert named, query
    for name, matched in named.items():
        labels = BY_PROMETHEUS.union(DECLARED[name].labels)
        assert matched <= labels, name
        assert "instance" in matched, "the node can be chosen"
        assert dashboards.grouped(query) <= labels, name


def test_everything_that_the_daemon_tells_of_itself_is_shown() -> None:
    shown = {name for query in dashboards.queries(NODE).values() for name, _ in dashboards.metrics(query)}
    assert {name for name in PLAIN if name not in shown} == ELSEWHERE, "give it a panel, or say here where else"


def test_panels_have_numbers_of_their_own_and_do_not_lie_upon_each_other() -> None:
    numbers = [panel["id"] for panel in NODE["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in NODE["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        across = range(place["x"], place["x"] + place["w"])
        cells = set(product(across, range(place["y"], place["y"] + place["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells
    rows = [panel["gridPos"]["y"] for panel in NODE["panels"]]
    assert all(above <= below for above, below in pairwise(rows))
