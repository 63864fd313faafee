"""What injection takes and gives. A pod is a plain mapping {metadata, spec}: a Pod object, or a
workload's pod template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Document = dict[str, Any]
"""A JSON object that is made or changed here: a pod, a template, a part of Envoy's configuration.
What is read of a pod is checked before (:func:`nodeagent.inject.shape.read`), so what stands below a
known key is what Kubernetes takes there.
"""
PROXY: Final = "istio-proxy"


@dataclass(frozen=True, slots=True)
class PodNamespace:
    """Where the pod is to live, and the labels of that namespace, which decide first."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """How to inject.

    ``template`` is a builtin's name (``envoy``, ``nodeagent``) or the path of a user's own: a file,
    or a folder with ``sidecar.yaml``. ``revision`` is this injector's (``istio.io/rev``); empty:
    the default one. ``native``: the proxy is an init container that keeps running (Kubernetes
    1.29), so it is there before the other init containers and does not keep a Job from ending.
    ``hold``: applications start after the proxy is ready. ``values`` are the template's, by name.
    ``own_image`` is nodeagent's image where neither they nor the template name it; empty: that of a release.
    """

    template: str = "envoy"
    revision: str = ""
    native: bool = False
    hold: bool = False
    values: Mapping[str, object] = field(default_factory=dict)
    own_image: str = ""


@dataclass(frozen=True, slots=True)
class Injected:
    """The pod with its sidecar: a new object that shares nothing with the one given."""

    pod: Document


@dataclass(frozen=True, slots=True)
class Skipped:
    """The pod stays as it is. ``reason`` is a code, ``text`` says it to a person."""

    reason: str
    text: str


def show(value: object) -> str:
    """Return *value* as a message quotes it: JSON, at most 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
