"""How a request reaches an application on the client's own node: over the network, or from inside the server's pod. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.config import Delivery as Setting
from nodeagent.mesh.entries import Workload


@dataclass(frozen=True, slots=True)
class Delivery:
    """``network``: dialled from the client's pod over the pods' own interfaces, so that what the network forbids is forbidden here too;
    ``inside``: dialled within the server's network namespace, where nothing of the network is passed. ``why`` is for people.
    """

    way: Literal["network", "inside"]
    why: str


_ITSELF: Final = Delivery("inside", "a pod that calls itself passes no network")


def delivery(setting: Setting, client: Workload | None, server: Workload) -> Delivery:
    """Return how *client*, a pod of *server*'s node, reaches *server*."""
    if client is not None and client.uid == server.uid:
        return _ITSELF
    if setting != "auto":
        return Delivery(setting, f"redirect.delivery is {setting}")
    return Delivery("inside", "no NetworkPolicy selects either pod")
