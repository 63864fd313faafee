"""What containers use, from the text of ``kubectl top pods --containers``, with or without ``-A``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nodeagent.compare.estimate.amount import Amount
from nodeagent.compare.estimate.pods import EstimateError
from nodeagent.resources.quantity import quantity

Key = tuple[str | None, str, str]
"""Namespace, if it is told; pod; container."""
_COLUMNS: Final = {"NAMESPACE", "POD", "NAME", "CPU(cores)", "MEMORY(bytes)"}


def usage(text: str, file: str = "--top") -> Mapping[Key, Amount]:
    """Return what each container uses; *file* is its name for messages. Raises EstimateError."""
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    header = rows[0][1] if rows else []
    if not _COLUMNS - {"NAMESPACE"} <= set(header) <= _COLUMNS:
        raise EstimateError(
            f"{file}: line 1: allowed: the header of kubectl top pods -A --containers (NAMESPACE POD NAME "
            "CPU(cores) MEMORY(bytes))"
        )
    found: dict[Key, Amount] = {}
    for number, words in rows[1:]:
        if len(words) != len(header):
            raise EstimateError(
                f"{file}: line {number}: {len(words)} columns: allowed: {len(header)}, as in the header"
            )
        row = dict(zip(header, words, strict=True))
        try:
            found[row.get("NAMESPACE"), row["POD"], row["NAME"]] = Amount(
                quantity(row["CPU(cores)"]), quantity(row["MEMORY(bytes)"])
            )
        except ValueError as error:
            raise EstimateError(f"{file}: line {number}: allowed: {error}") from None
    return found
