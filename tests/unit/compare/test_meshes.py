"""How a mode's work is counted from the metrics of those who did it."""

from __future__ import annotations

import pytest

from nodeagent.compare import meshes
from nodeagent.telemetry.metrics import REQUESTS, TCP_OPENED

EXPOSITION = """# HELP istio_requests_total HTTP requests handled.
# TYPE istio_requests_total counter
istio_requests_total{connection_security_policy="mutual_tls",reporter="destination",request_protocol="http"} 40.0
istio_requests_total{reporter="destination",connection_security_policy="mutual_tls",request_protocol="http2"} 2.0
istio_requests_total{connection_security_policy="unknown",reporter="source",request_protocol="http"} 40.0
istio_requests_total{connection_security_policy="none",reporter="destination",request_protocol="http"} 8.0
"""


@pytest.mark.parametrize(
    ("labels", "total"),
    [
        ({}, 90),
        ({"reporter": "destination"}, 50),
        ({"reporter": "destination", "connection_security_policy": "mutual_tls"}, 42),
        ({"reporter": "nobody"}, 0),
    ],
)
def test_series_are_added_up_by_their_labels_in_whatever_order(labels: dict[str, str], total: int) -> None:
    assert meshes._total(EXPOSITION, REQUESTS, labels) == total


def test_requests_by_mutual_tls() -> None:
    assert meshes._requests_by_tls(EXPOSITION) == 42


def test_a_family_that_is_not_there_counts_nothing() -> None:
    assert meshes._total(EXPOSITION, TCP_OPENED, {}) == 0
