"""The policies for the network that the cluster has: which pods they are for, as far as the agent
can tell. Pure.

It enforces none of them; where one may concern two pods, what goes from one to the other crosses
their interfaces (``mesh/delivery.py``).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from nodeagent.resources.labels import LabelSelector
from nodeagent.resources.objects import NetworkPolicyObject, UnreadPolicy
from nodeagent.vocabulary import ObjectKey


class NetworkPolicies:
    """NetworkPolicies by namespace, and those that cannot be read."""

    def __init__(self) -> None:
        self._selectors: dict[str, dict[str, LabelSelector]] = {}
        self._names: dict[str, list[str]] = {}
        """Of those in a namespace, sorted."""
        self._unread: set[ObjectKey] = set()

    def put(self, kind: str, namespace: str, name: str, policy: NetworkPolicyObject | UnreadPolicy | None) -> None:
        """Know the policy *name*, know it anew, or (None) no more."""
        if self._selectors.get(namespace, {}).pop(name, None) is not None:
            self._names[namespace].remove(name)
        self._unread.discard((kind, namespace, name))
        if isinstance(policy, NetworkPolicyObject):
            self._selectors.setdefault(namespace, {})[name] = policy.selector
            insort(self._names.setdefault(namespace, []), name)
        elif policy is not None:
            self._unread.add((kind, namespace, name))

    def selector(self, namespace: str, name: str) -> LabelSelector | None:
        """Return which pods the policy *name* is for; None: there is none that can be read."""
        return self._selectors.get(namespace, {}).get(name)

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> str:
        """Return ``namespace/name`` of a NetworkPolicy, the first by name, that is for a pod with
        *labels*; empty: none is.
        """
        selectors = self._selectors.get(namespace, {})
        first = next((name for name in self._names.get(namespace, ()) if selectors[name].matches(labels)), "")
        return f"{namespace}/{first}" if first else ""

    def unread(self) -> str:
        """Return the first of the policies that cannot be read, in words; empty: all can."""
        kind, namespace, name = min(self._unread, default=("", "", ""))
        return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}".strip()
