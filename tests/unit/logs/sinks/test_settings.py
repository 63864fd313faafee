"""What a sink's settings may say, and what a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nodeagent.logs.sinks.settings import BufferSettings, SinkSettings
from nodeagent.logs.sinks.templates import DateWindow, IndexName
from tests.unit.logs.made_records import NOW, records


def elasticsearch(**more: Any) -> dict[str, Any]:
    return {"name": "s", "elasticsearch": {"urls": ["https://search:9200"], **more}}


@pytest.mark.parametrize(
    "right",
    [
        elasticsearch(),
        elasticsearch(urls=["http://[::1]:9200/prefix/"]),
        elasticsearch(index="{label:app.kubernetes.io/name}-{date}"),
        {"name": "s", "loki": {"urls": ["http://loki"], "tenant": "a"}},
        {"name": "s", "otlp": {"address": "[::1]:4317"}},
        {"name": "s", "forward": {"addresses": ["fluentd:24224"]}},
        {"name": "s", "stdout": {}, "inFlight": 1},
        {"name": "s", "otlp": {"address": "c:1", "headers": {"tenant": "/x", "team-id": "/x"}}},
    ],
)
def test_right_ones(right: dict[str, Any]) -> None:
    SinkSettings.model_validate(right)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "s"}, "one of elasticsearch, loki"),
        ({"name": "s", "stdout": {}, "file": {"path": "/x"}}, "file and stdout is given"),
        ({"name": "S", "stdout": {}}, "pattern"),
        ({"name": "s", "stdout": {}, "x": 1}, "no such key"),
        (elasticsearch(urls=[]), "at least 1"),
        (elasticsearch(urls=["search:9200"]), "http://HOST"),
        (elasticsearch(urls=["ftp://search"]), "http://HOST"),
        (elasticsearch(urls=["http://search:99999"]), "Port out of range"),
        (elasticsearch(urls=["http://search/?a=b"]), "no \\?"),
        (elasticsearch(urls=["http://sea rch"]), "printable ASCII"),
        (elasticsearch(urls=["http://a\r\nb"]), "http://HOST|printable"),
        (elasticsearch(index="Logs"), "lower-case"),
        (elasticsearch(index="logs/{date}"), "lower-case"),
        (elasticsearch(index="{pid}"), "is not known"),
        (elasticsearch(index="{namespace"), "a place is written"),
        (elasticsearch(index="logs-{date:%Y.%m}"), "is not known"),
        (elasticsearch(index="logs-{date!r}"), "is not known"),
        (elasticsearch(index="logs-{namespace:>10}"), "is not known"),
        (elasticsearch(index="logs-{{date}}"), "a place is written"),
        (elasticsearch(index="logs-}"), "a place is written"),
        ({"name": "s", "loki": {"urls": ["http://l"], "labels": {"day": "{date}"}}}, "is not known"),
        ({"name": "s", "otlp": {"address": "c:1", "headers": {"te": "/x"}}}, "says gRPC itself"),
        ({"name": "s", "otlp": {"address": "c:1", "headers": {"content-type": "/x"}}}, "says gRPC itself"),
        (elasticsearch(auth={"apiKeyFile": "/a", "bearerFile": "/b"}), "one of basic"),
        (elasticsearch(tls={"keyFile": "/a"}), "belong together"),
        ({"name": "s", "loki": {"urls": ["http://l"], "labels": {}}}, "without a label"),
        ({"name": "s", "loki": {"urls": ["http://l"], "labels": {"a-b": "x"}}}, "letters, digits"),
        ({"name": "s", "loki": {"urls": ["http://l/loki/api/v1/push"]}}, "without /loki/api/v1/push"),
        ({"name": "s", "file": {"path": "logs.jsonl"}}, "absolute path"),
        ({"name": "s", "otlp": {"address": "http://x:1"}}, "HOST:PORT"),
        ({"name": "s", "otlp": {"address": "x"}}, "HOST:PORT"),
        ({"name": "s", "forward": {"addresses": ["x:0"]}}, "HOST:PORT"),
    ],
)
def test_wrong_ones(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SinkSettings.model_validate(wrong)


@given(st.text("{}:!daten%Y.", max_size=12))
def test_every_template_that_is_accepted_is_filled(template: str) -> None:
    """A record that no encoder takes is a dead letter: all would be."""
    try:
        SinkSettings.model_validate(elasticsearch(index="{namespace}" + template))
    except ValidationError:
        return
    assert IndexName("{namespace}" + template, DateWindow(7, 1, lambda: NOW)).of(records(["a"]))


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="no user or password") as error:
        SinkSettings.model_validate(elasticsearch(urls=["https://me:hunter2@search"]))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(("written", "bytes_meant"), [("2Gi", 2 << 30), ("500M", 500_000_000), (1 << 20, 1 << 20)])
def test_sizes_are_written_as_kubernetes_writes_them(written: object, bytes_meant: int) -> None:
    assert BufferSettings.model_validate({"bytes": written}).bytes == bytes_meant
