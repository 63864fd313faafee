"""The schemas by which an API server knows the kinds of policy: they have the fields that Istio's have, no others,
and prune nothing, so that a mistyped field comes to who refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.resources.test_istio_fields import FIELDS

DAEMONSET = Path(__file__).parents[3] / "daemonset"
PRESERVED = "x-kubernetes-preserve-unknown-fields"
OF_OURS = {
    "RateLimit": (
        *(f"global.{name}" for name in ("domain", "failureMode", "provider", "timeout")),
        *(f"global.descriptors[].entries[].{name}" for name in ("key", "value")),
        "local[].by",
        *(f"local[].match.{name}" for name in ("headers", "methods", "paths")),
        *(f"local[].tokenBucket.{name}" for name in ("fillInterval", "maxTokens", "tokensPerFill")),
        *(path for path in FIELDS["AuthorizationPolicy"] if path.startswith(("selector", "target"))),
    )
}


def definitions() -> dict[str, Any]:
    files = [*(DAEMONSET / "overlays/crds").glob("*s.yaml"), DAEMONSET / "base/crds/ratelimits.yaml"]
    found = [yaml.safe_load(file.read_text()) for file in files]
    return {each["spec"]["names"]["kind"]: each["spec"] for each in found}


def leaves(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield the fields of *schema*, written as in FIELDS."""
    if schema["type"] == "array" and schema["items"].get("type") == "object":
        yield from leaves(schema["items"], f"{path}[]")
    elif "properties" in schema:
        for name, inner in schema["properties"].items():
            yield from leaves(inner, f"{path}.{name}".removeprefix("."))
    elif schema.get("additionalProperties", {}).get("type") == "object":
        yield from leaves(schema["additionalProperties"], f"{path}.8080")
    else:
        yield path


def pruning(schema: Any, path: str = "") -> Iterator[str]:
    """Yield where *schema* drops fields that it does not know."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and not schema.get(PRESERVED) and "additionalProperties" not in schema:
            yield path
        for name, inner in schema.items():
            yield from pruning(inner, f"{path}.{name}")


@pytest.mark.parametrize(("kind", "fields"), [*FIELDS.items(), *OF_OURS.items()])
def test_a_schema_has_the_fields_that_are_read_and_prunes_nothing(kind: str, fields: tuple[str, ...]) -> None:
    for version in definitions()[kind]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        assert sorted(leaves(schema["properties"]["spec"], "")) == sorted(fields)
        assert list(pruning(schema)) == []
