"""Kubernetes' label selectors (meta/v1 LabelSelector): which labels one matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class LabelExpression:
    """One of ``matchExpressions``; ``operator`` is one of OPERATORS."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Say whether *labels* fulfil it; NotIn is fulfilled without the label too
        (labels.Requirement in apimachinery).
        """
        found = labels.get(self.key)
        match self.operator:
            case "In":
                return found in self.values
            case "NotIn":
                return found not in self.values
            case "Exists":
                return found is not None
            case _:
                return found is None


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """``matchLabels`` and ``matchExpressions``, which must all be fulfilled; without any it matches everything."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[LabelExpression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(name) == value for name, value in self.labels) and all(
            each.matches(labels) for each in self.expressions
        )
