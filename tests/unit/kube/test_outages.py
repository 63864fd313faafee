"""What of kinds that cannot be followed stands in the log."""

from __future__ import annotations

import logging

import pytest

from nodeagent.kube.outages import Outages

KINDS = ("pods", "services", "nodes")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what a log has by default, and forget it."""
    found = [each.getMessage() for each in caplog.records if each.levelno >= logging.INFO]
    caplog.clear()
    return found


@pytest.mark.parametrize("status", [0, 500, 503])
def test_a_server_that_is_away_is_said_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture, status: int) -> None:
    caplog.set_level(logging.DEBUG)
    outages = Outages()
    for _ in range(2):
        for kind in KINDS:
            outages.failed(kind, f"{kind}: cannot connect", status)
        outages.failed("pods", "pods: no answer within 10 s", status)
        assert said(caplog) == ["pods: cannot connect; what is known stays in force"]
        (warning,) = outages.warnings()
        assert warning.startswith("the API server does not answer, and what is known stays in force: pods: ")
        for kind in KINDS:
            outages.ended(kind)
        assert said(caplog) == ["the API server answers again: everything is followed"]
        assert outages.warnings() == []


def test_each_kind_that_is_refused_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Input: rights are missing, of one kind after the server was away. Verdict: each is named, and each return."""
    caplog.set_level(logging.INFO)
    outages = Outages()
    outages.failed("pods", "pods: cannot connect", 0)
    said(caplog)
    for kind in KINDS:
        outages.failed(kind, f"{kind}: forbidden", 403)
        assert said(caplog) == [f"{kind}: forbidden; what is known stays in force"]
    assert outages.warnings() == []  # that is the agent's fault: it is in what is missing
    for kind in KINDS:
        outages.ended(kind)
        assert said(caplog) == [f"{kind} are followed again"]
