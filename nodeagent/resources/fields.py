"""The types of fields that Kubernetes objects are made of, and what every part of one has in
common: frozen, strict, no unknown fields.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""An RFC 1123 label; Kubernetes asks no more of most names, and a DNS name needs no less."""
PortNumber = Annotated[int, Field(ge=1, le=65535)]
PortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]*[a-z][a-z0-9-]*$", max_length=15)]
ServicePortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)
]
Labels = dict[LabelKey, LabelValue]
Seconds = Annotated[int, Field(ge=0)]
Ignored = Any
"""Accepted because real manifests hold it, and without meaning in the lab."""


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("an absolute path without '..'")
    return path


def _relative(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("a relative path without '..'")
    return path


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("an IPv4 or IPv6 address") from None


def family_of(address: str) -> Literal["IPv4", "IPv6"]:
    """Return the family of *address*, as ``ipFamilies`` has it. Raises ValueError."""
    return "IPv6" if ipaddress.ip_address(address).version == 6 else "IPv4"


def _cluster_ip(text: str) -> str:
    return text if text == "None" else _address(text)


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("a network such as 10.0.0.0/8 or fd00::/8") from None


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
RelativePath = Annotated[str, AfterValidator(_relative)]
ClusterIP = Annotated[str, AfterValidator(_cluster_ip)]
Cidr = Annotated[str, AfterValidator(_cidr)]


FIELD_FAULT = "field_fault"


def fault(path: str, value: object, allowed: str) -> PydanticCustomError:
    """Return the error for the field at *path* below the model that finds the fault, as no single field can see it."""
    return PydanticCustomError(FIELD_FAULT, "{allowed}", {"path": path, "value": value, "allowed": allowed})


def unique(values: Iterable[tuple[str, object]]) -> None:
    """Refuse the second of two equal values; *values* are pairs of path and value."""
    seen: dict[object, str] = {}
    for path, value in values:
        if value in seen:
            raise fault(path, value, f"a value that differs from {seen[value]}")
        seen[value] = path


class Section(BaseModel):
    """A part of an object: camelCase outside, unknown fields and wrong types refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    def dump(self) -> dict[str, Any]:
        """Return the JSON form, without what was not given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
