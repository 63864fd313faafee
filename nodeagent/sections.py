"""What configuration files of this program are made of: sections of which every key is known, and the
types that several of them share.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

_UNITS: Final = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


class UnshownError(ValueError):
    """A value is wrong, and may hold a secret: it is in no message."""


class ConfigSection(BaseModel):
    """A mapping of which every key is known."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


def _seconds(value: object) -> object:
    """Return the seconds of a duration as Istio writes it (``250ms``, ``5s``); anything else as it is."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", value) if isinstance(value, str) else None
    return float(match[1]) * _SECONDS[match[2]] if match else value


def _bytes(value: object) -> object:
    """Return the bytes of a size as Kubernetes writes it (``64Mi``), maybe with a B; anything else as it is."""
    match = re.fullmatch(r"(\d{1,12})([KMG]|[KMGT]i)?B?", value) if isinstance(value, str) else None
    return int(match[1]) * _UNITS[match[2] or ""] if match else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600)]
"""Seconds, or a text such as ``250ms``."""
Size = Annotated[int, BeforeValidator(_bytes)]
"""Bytes, or a text such as ``64Mi``."""
