"""What the tests of dashboards share: the queries of ``daemonset/dashboards/``, and which metrics
and labels a query names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "daemonset" / "dashboards"
_METRIC = re.compile(r"\b((?:nodeagent|istio)_\w+)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*[=!]~?\s*"')
_BY = re.compile(r"\bby \(([^)]*)\)")


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def panels(dashboard: Any) -> Iterator[Any]:
    """Yield the panels that show something."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel


def queries(dashboard: Any) -> dict[str, str]:
    """Return each query, by its panel's title and its letter."""
    found = {}
    for panel in panels(dashboard):
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def metrics(query: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the metrics of *query*, each with the labels that are matched."""
    for name, matchers in _METRIC.findall(query):
        yield name, frozenset(_MATCHER.findall(matchers))


def grouped(query: str) -> frozenset[str]:
    """Return the labels by which *query* groups."""
    return frozenset(label.strip() for labels in _BY.findall(query) for label in labels.split(",") if label.strip())


def filled(query: str, **variables: str) -> str:
    """Return *query* with Grafana's *variables* filled in; a variable that is missing is a KeyError."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], query)
