"""People write secrets where none belongs: whatever the form and the place, no message shows it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nodeagent.logs.settings import LogSettings
from nodeagent.sections import told

SECRET = "hunter2"
ADDRESSES = (
    f"https://me:{SECRET}@search:9200",
    f"https://me:{SECRET}/YmFy@search:9200",
    f"https://me:{SECRET}#x@search:9200",
    f"https://me:{SECRET}?x@search:9200",
    f"https://me:{SECRET}@search:no",
    f"https://[::1:{SECRET}@x",
    f"https://search/?token={SECRET}",
    f"https://search?token={SECRET}",
    f"me:{SECRET}@search:9200",
    f"ftp://me:{SECRET}@search",
)
TEXTS = (SECRET, f"me:{SECRET}", f"Bearer {SECRET}", f"https://me:{SECRET}@search")
VALUES: tuple[Any, ...] = (*TEXTS, [SECRET], {SECRET + ":": ""}, {f"me:{SECRET}": None}, {"user": f"me:{SECRET}"})


def elasticsearch(**more: Any) -> dict[str, Any]:
    return {"elasticsearch": {"urls": ["https://search"], **more}}


def otlp(**more: Any) -> dict[str, Any]:
    return {"otlp": {"address": "collector:4317", **more}}


def of_an_address(value: object) -> list[dict[str, Any]]:
    return [
        {"elasticsearch": {"urls": [value]}},
        {"elasticsearch": {"urls": value}},
        {"elasticsearch": value},
        {"loki": {"urls": [value]}},
        {"loki": value},
        {"otlp": {"address": value}},
        {"otlp": value},
        {"forward": {"addresses": [value]}},
        {"forward": {"addresses": value}},
    ]


def of_a_secret(value: object) -> list[dict[str, Any]]:
    return [
        elasticsearch(auth=value),
        elasticsearch(auth={"basic": value}),
        elasticsearch(auth={"basic": {"user": "me", "passwordFile": value}}),
        elasticsearch(auth={"basic": {"user": "me", "password": value, "passwordFile": "/p"}}),
        elasticsearch(auth={"apiKeyFile": value}),
        elasticsearch(auth={"bearerFile": value}),
        elasticsearch(tls=value),
        elasticsearch(tls={"certificateFile": "/c", "keyFile": value}),
        otlp(headers=value),
        otlp(headers={"authorization": value}),
        otlp(headers={f"Authorization: Bearer {SECRET}": "/x"}),
        otlp(auth=value),
        {"forward": {"addresses": ["f:1"], "sharedKeyFile": value}},
        {"forward": {"addresses": ["f:1"], "sharedKey": value}},
    ]


@pytest.mark.parametrize("sink", [each for value in ADDRESSES for each in of_an_address(value)], ids=repr)
def test_of_an_address(sink: dict[str, Any]) -> None:
    _is_not_shown(sink, SECRET)


@pytest.mark.parametrize("sink", [each for value in VALUES for each in of_a_secret(value)], ids=repr)
def test_in_place_of_a_file(sink: dict[str, Any]) -> None:
    _is_not_shown(sink, SECRET)


@pytest.mark.parametrize("sink", of_a_secret(1234567), ids=repr)
def test_a_number(sink: dict[str, Any]) -> None:
    _is_not_shown(sink, "1234567")


def _is_not_shown(sink: dict[str, Any], secret: str) -> None:
    with pytest.raises(ValidationError) as error:
        LogSettings.model_validate({"sinks": [{"name": "s", **sink}]})
    assert secret not in told(error.value)
