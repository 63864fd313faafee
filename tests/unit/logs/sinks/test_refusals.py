"""Why a server refuses a whole request, as it is told."""

from __future__ import annotations

import json

import pytest

from nodeagent.logs.sinks.refusals import MAX_REASON, reason_of

NESTED = {
    "error": {
        "root_cause": [{"type": "illegal_argument_exception", "reason": "after composition is invalid"}],
        "type": "illegal_argument_exception",
        "reason": "template [a] is invalid",
        "caused_by": {
            "type": "illegal_argument_exception",
            "reason": "mappings of [a]",
            "caused_by": {
                "type": "mapper_parsing_exception",
                "reason": "No handler for type [nonsense]",
                "caused_by": {"type": "mapper_parsing_exception", "reason": "No handler for type [nonsense]"},
            },
        },
    },
    "status": 400,
}
"""As OpenSearch answers."""


def endless(levels: int) -> dict[str, object]:
    found: dict[str, object] = {"type": "t", "reason": "the innermost"}
    for level in range(levels):
        found = {"type": "t", "reason": f"r{level}", "caused_by": found}
    return {"error": found}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            NESTED,
            "illegal_argument_exception: template [a] is invalid: mappings of [a]: No handler for type [nonsense]",
        ),
        ({"error": {"type": "t", "reason": "r", "caused_by": ["no", "object"]}}, "t: r"),
        ({"error": {"type": "t"}}, "t: "),
        ({"error": "in a word"}, "in a word"),
        ({"else": 1}, '{"else": 1}'),
    ],
)
def test_what_is_behind_a_reason_is_told(body: object, said: str) -> None:
    assert reason_of(json.dumps(body).encode()) == said


def test_reasons_without_end_are_bounded() -> None:
    assert "innermost" not in reason_of(json.dumps(endless(200)).encode())
    assert len(reason_of(json.dumps({"error": {"type": "t", "reason": "x" * 9999}}).encode())) == MAX_REASON
