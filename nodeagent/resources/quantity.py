"""Kubernetes' quantities, exactly: ``100m``, ``0.5``, ``128Mi``, ``1e3``.

Source: k8s.io/apimachinery/pkg/api/resource, Quantity: a signed decimal number and one suffix, of
powers of 1024, of powers of 1000, or an exponent.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_SUFFIXES: Final = {
    **{
        suffix: Fraction(1000) ** power
        for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{suffix: Fraction(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_FORM: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))(?:[eE](?P<exponent>[+-]?[0-9]{1,2})|(?P<suffix>[A-Za-z]{0,2}))"
)


def quantity(value: object) -> Fraction:
    """Return the value of a quantity, which YAML may have made a number of. Raises ValueError,
    which says what is allowed.

    ``E`` alone is 10^18; before digits it is an exponent, as for Kubernetes.
    """
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    match = _FORM.fullmatch(text)
    if match is None or (match["suffix"] or "") not in _SUFFIXES:
        raise ValueError("a quantity as 100m, 0.5, 128Mi")
    number = Fraction(match["number"] if not match["number"].endswith(".") else match["number"][:-1])
    return number * (Fraction(10) ** int(match["exponent"]) if match["exponent"] else _SUFFIXES[match["suffix"]])
