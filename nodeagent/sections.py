"""What configuration files of this program are made of: sections of which every key is known, and the
types that several of them share.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from nodeagent.errors import in_quotes

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
_UNKNOWN: Final = "unknown_key"
_SWITCH: Final = "switch_for_number"
_NUMBERS: Final = (int, float, int | None, float | None)
_EXPECTED: Final = {
    "missing": "is required",
    "model_type": "a mapping of its keys is expected",
    "dict_type": "a mapping is expected",
    "tuple_type": "a list is expected",
    "too_short": "at least {min_length} are expected",
    "too_long": "at most {max_length} are expected",
    "string_type": "a text is expected",
    "string_too_short": "a text of {min_length} characters or more is expected",
    "string_too_long": "a text of at most {max_length} characters is expected",
    "string_pattern_mismatch": "a text after the pattern {pattern} is expected",
    "path_type": "a path is expected",
    "literal_error": "{expected} is expected",
    "bool_type": "true or false is expected",
    "bool_parsing": "true or false is expected",
    "int_type": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "float_parsing": "a number is expected",
    "greater_than": "more than {gt} is expected",
    "greater_than_equal": "{ge} or more is expected",
    "less_than": "less than {lt} is expected",
    "less_than_equal": "{le} or less is expected",
}
"""What is allowed, by pydantic's types of errors (https://docs.pydantic.dev/latest/errors/validation_errors/)."""
_SHAPES: Final = {
    r"^[a-z0-9._-]{1,255}$": "a trust domain is expected (small letters, digits, '.', '-', '_'), such as cluster.local",
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$": "a DNS label is expected (small letters, digits and '-', at most 63)",
    r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": "a DNS name is expected (small letters, digits, '-' and '.')",
    r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?$": "a node's name is expected (letters, digits, '.', '-', '_')",
    r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$": "HOST:PORT is expected, as istiod.istio-system.svc:15012",
    r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?$": (
        "a Service's host is expected, or NAMESPACE/HOST"
    ),
}
"""Patterns in words: nobody reads a regular expression who has only mistyped a name."""
_TEXTS: Final = frozenset({"string_type", "path_type"})
"""Errors of a plain scalar that YAML took for no text, such as ``no``."""
_OF_SEVERAL: Final = frozenset({"model_type", "dict_type", "tuple_type"})
"""Errors of what stands where a section or list is expected, such as one address."""
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


class UnshownError(ValueError):
    """A value is wrong, and may hold a secret: it is in no message."""


class ConfigSection(BaseModel):
    """A mapping of which every key is known."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        """A misspelt key is told before what is missing for it, with the keys that there are."""
        known = [each.alias or name for name, each in cls.model_fields.items()]
        for key in value if isinstance(value, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                meant = f"is {near[0]} meant? There are" if near else "there are"
                context = {"key": key, "known": f"{meant} {', '.join(known) or 'none'}"}
                raise PydanticCustomError(_UNKNOWN, "no such key is known; {known}", context)
        return cls._no_switch_for_number(value)

    @classmethod
    def _no_switch_for_number(cls, value: object) -> object:
        """``true`` would be the number 1: the port 1, a limit of 1."""
        for name, each in cls.model_fields.items():
            key = each.alias or name
            if each.annotation in _NUMBERS and isinstance(value, dict) and isinstance(value.get(key), bool):
                raise PydanticCustomError(_SWITCH, "a number is expected, not true or false", {"key": key})
        return value


def may_hold_secret(address: str) -> bool:
    """Say whether *address*, which may be written wrongly, may hold a password or token: then it is not shown."""
    return "@" in address or "?" in address


class SecretSection(ConfigSection):
    """One that names files with secrets: people write the secret itself in its place, which is in no message."""

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, value: object) -> object:
        if isinstance(value, dict) and all(str(each).isalpha() for each in value):
            return value
        if isinstance(value, cls):
            return value
        known = ", ".join(each.alias or name for name, each in cls.model_fields.items())
        raise UnshownError(f"a mapping is expected, with keys of {known}; a secret itself stands in a file of its own")


def _seconds(value: object) -> object:
    """Return the seconds of a duration as Istio writes it (``250ms``, ``5s``); anything else as it is."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", value) if isinstance(value, str) else None
    return float(match[1]) * _SECONDS[match[2]] if match else value


def _bytes(value: object) -> object:
    """Return the bytes of a size as Kubernetes writes it (``64Mi``), maybe with a B; anything else as it is."""
    match = re.fullmatch(r"(\d{1,12})([KMG]|[KMGT]i)?B?", value) if isinstance(value, str) else None
    return int(match[1]) * _UNITS[match[2] or ""] if match else value


def _secret_path(value: object) -> object:
    """Return *value* if it can be a path. Raises UnshownError: people write the secret itself there."""
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        raise UnshownError("the absolute path of a file that holds the secret is expected, not the secret itself")
    return value


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("an absolute path is expected")
    return path


def told(error: ValidationError) -> str:
    """Return in one line what is wrong first: its field, what is allowed, and the value, unless it may hold a secret:
    that of a key that is not known, or of a whole section, does, and so does an address with a user or a query.
    """
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == _UNKNOWN), found[0])
    place = [str(each) for each in first["loc"]]
    if first["type"] in (_UNKNOWN, _SWITCH):
        place.append(f"{first['ctx']['key']!s:.80}")
    context = first.get("ctx", {})
    known = _SHAPES.get(context.get("pattern", "")) or _EXPECTED.get(first["type"], "").format_map(context)
    words = known or first["msg"]
    others = sum(1 for each in found if each is not first and not _follows(each, found))
    more = f" (and {others} more)" if others else ""
    field = f"{'.'.join(place)}: " if place else ""
    return f"{field}{words.removeprefix('Value error, ')}{_given(first)}{more}"


def _follows(error: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Say whether *error* is of a list that is too short only because some of its items are wrong."""
    place = error["loc"]
    return error["type"] == "too_short" and any(each["loc"][: len(place)] == place for each in found if each != error)


def _given(error: ErrorDetails) -> str:
    value = error["input"]
    unshown = isinstance(error.get("ctx", {}).get("error"), UnshownError) or isinstance(value, dict | list)
    unshown = unshown or (error["type"] in _OF_SEVERAL and isinstance(value, str) and may_hold_secret(value))
    said = isinstance(value, str) and f"{value!r:.80}" in error["msg"]
    quotes = in_quotes(value) if error["type"] in _TEXTS else ""
    return "" if unshown or said else f", not {value!r:.80}{quotes}"


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600)]
"""Seconds, or a text such as ``250ms``."""
Size = Annotated[int, BeforeValidator(_bytes)]
"""Bytes, or a text such as ``64Mi``."""
SecretFile = Annotated[Path, BeforeValidator(_secret_path)]
"""A file that holds a secret."""
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
