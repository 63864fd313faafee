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
MEASURED: Final = {
    "http://frontend/health": "one hop, same node",
    "http://details:9080/health": "one hop, other node",
    "http://ratings:9080/": "ratings and TCP store",
}
"""What latency is measured of: each URL takes the same way every time, whereas a page needs reviews v1 or v2."""
PROGRAMS: Final = ("bookinfo.py", "visitor.py")
IDENTITIES: Final = f"spiffe://cluster.local/ns/{NAMESPACE}/sa/"

Policy = Literal["mutual_tls", "kernel_attested"]


@dataclass(frozen=True, slots=True)
class DemoHop:
    """One workload calling another. Both have a service account with the name of their service."""

    source: str
    destination: str
    policy: Policy
    """How each side is told who the other is."""
    protocol: Literal["http", "tcp"] = "http"

    @property
    def client(self) -> str:
        """The identity that the calling side has to prove."""
        return identity(self.source)

    @property
    def server(self) -> str:
        """The identity that the called side has to prove."""
        return identity(self.destination)


def identity(workload: str) -> str:
    """Return the SPIFFE identity that *workload* should have: two versions of a service share one account."""
    return IDENTITIES + workload.partition("-v")[0]


HOPS: Final = (
    DemoHop("visitor", "frontend", "kernel_attested"),
    DemoHop("frontend", "details", "mutual_tls"),
    DemoHop("frontend", "reviews-v1", "kernel_attested"),
    DemoHop("frontend", "reviews-v2", "mutual_tls"),
    DemoHop("reviews-v2", "ratings", "mutual_tls"),
    DemoHop("ratings", "store", "mutual_tls", "tcp"),
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
