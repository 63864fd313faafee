"""The annotation ``sidecar.istio.io/status``: what was added to a pod, and what stood there before.
Istio's keys, and four more for the way back.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nodeagent.errors import InjectionError
from nodeagent.inject.model import Document, show
from nodeagent.istio import STATUS

Names = tuple[str, ...]
Handlers = dict[str, Annotated[dict[str, object], Field(min_length=1, max_length=1)]]
"""Probe's field -> {kind: handler}."""


class Status(BaseModel):
    """``absent`` names the pod's fields that injection made, with ``: null`` for those that stood
    there without a value.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    init_containers: Names
    containers: Names
    volumes: Names
    image_pull_secrets: Names | None = None
    revision: str
    labels: Names
    annotations: Names
    probes: dict[str, Handlers]
    absent: Names

    def text(self) -> str:
        """Return the annotation's value: JSON with Istio's keys."""
        return self.model_dump_json(by_alias=True)


def read(text: str) -> Status:
    """Return the status in an annotation's *text*. Raises InjectionError: what another injector
    wrote does not say what was there before.
    """
    try:
        return Status.model_validate_json(text)
    except ValidationError:
        raise InjectionError(
            f"metadata.annotations[{STATUS}]: {show(text)}: allowed: what nodeagent inject wrote there: something "
            "else injected this pod"
        ) from None


def absent(pod: Document) -> Names:
    """Return the fields of *pod* that injection may have to make and that hold nothing, for the way
    back; ``NAME: null`` for one that is there without a value.
    """
    return tuple(
        field if field not in place else f"{field}: null" for place, field in _places(pod) if place.get(field) is None
    )


def forget(pod: Document, status: Status) -> None:
    """Remove from *pod* the empty fields that, by *status*, injection had made, and set to null
    again those that had stood there without a value.
    """
    for place, field in _places(pod):
        if place.get(field):
            continue
        if field in status.absent:
            place.pop(field, None)
        elif f"{field}: null" in status.absent:
            place[field] = None


def _places(pod: Document) -> list[tuple[Document, str]]:
    metadata = pod.get("metadata") or {}
    spec = pod["spec"]
    return [
        (spec, "initContainers"),
        (spec, "volumes"),
        (metadata, "labels"),
        (metadata, "annotations"),
        (pod, "metadata"),
    ]
