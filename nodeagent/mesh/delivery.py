"""How a request reaches an application on the client's own node: over the network, or from inside
the server's pod. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.config import DeliverySetting
from nodeagent.mesh.entries import Entry, UnreadPolicies, Workload


@dataclass(frozen=True, slots=True)
class Delivery:
    """``network``: dialled from the client's pod over the pods' own interfaces, so that what the
    network forbids is forbidden here too; ``inside``: dialled within the server's network
    namespace, where nothing of the network is passed. ``why`` is for people.
    """

    way: Literal["network", "inside"]
    why: str

    def __str__(self) -> str:
        return f"{self.way}: {self.why}"


_ITSELF: Final = Delivery("inside", "a pod that calls itself passes no network")
_FREE: Final = Delivery("inside", "no NetworkPolicy selects either pod")


def delivery(
    setting: DeliverySetting, client: Workload | None, server: Workload | None, unread: Entry | None
) -> Delivery:
    """Return how *client*, a pod of *server*'s node, reaches *server*. None: it is not known, or is
    outside.

    *setting* is ``redirect.delivery`` of agent.yaml, *unread* the snapshot's entry of policies that
    cannot be read, None without any.
    """
    if client is not None and server is not None and client.uid == server.uid:
        return _ITSELF
    if setting != "auto":
        return Delivery(setting, f"redirect.delivery is {setting}")
    if isinstance(unread, UnreadPolicies):
        return Delivery("network", f"{unread.example} is not read, and may be for either pod")
    for pod in (client, server):
        if pod is not None and pod.network_policy:
            return Delivery("network", f"NetworkPolicy {pod.network_policy} selects {pod.namespace}/{pod.pod}")
    return _FREE
