"""The demo's application as Kubernetes YAML, and what is to be expected of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

NAMESPACE: Final = "bookinfo"
VISITOR: Final = "visitor"
"""The pod from which requests are sent."""
PAGE: Final = "http://frontend/"
NEAR: Final = "http://frontend/health"
"""One hop, from node1 to node1."""
FAR: Final = "http://details:9080/health"
"""One hop, from node1 to node2."""
PROGRAMS: Final = ("bookinfo.py", "visitor.py")

Policy = Literal["mutual_tls", "kernel_attested"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One service calling another; both have a service account of their own name."""

    source: str
    destination: str
    """Workloads."""
    policy: Policy
    protocol: Literal["http", "tcp"] = "http"

    @property
    def accounts(self) -> tuple[str, str]:
        """Return the service accounts of both sides."""
        return self.source.partition("-v")[0], self.destination.partition("-v")[0]


HOPS: Final = (
    Hop("visitor", "frontend", "kernel_attested"),
    Hop("frontend", "details", "mutual_tls"),
    Hop("frontend", "reviews-v1", "kernel_attested"),
    Hop("frontend", "reviews-v2", "mutual_tls"),
    Hop("reviews-v2", "ratings", "mutual_tls"),
    Hop("ratings", "store", "mutual_tls", "tcp"),
)


def manifest() -> str:
    """Return all resources as YAML: the file bookinfo.yaml, and the ConfigMap with the programs that its pods run."""
    folder = files("nodeagent.lab.demo") / "app"
    programs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "bookinfo", "namespace": NAMESPACE},
        "data": {name: (folder / name).read_text(encoding="utf-8") for name in PROGRAMS},
    }
    return f"{(folder / 'bookinfo.yaml').read_text(encoding='utf-8')}---\n{json.dumps(programs)}\n"
