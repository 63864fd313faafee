"""Which Services select which pods, both ways, at the cost of what matches and not of what exists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Generic, TypeVar

NamespacedName = tuple[str, str]
"""Namespace and name."""
Term = tuple[str, str, str]
"""Namespace, label, value."""
_Name = TypeVar("_Name")
_Item = TypeVar("_Item")


class Postings(Generic[_Name, _Item]):
    """Sets of items by name; no set is ever empty."""

    def __init__(self) -> None:
        self._sets: defaultdict[_Name, set[_Item]] = defaultdict(set)

    def add(self, name: _Name, item: _Item) -> None:
        self._sets[name].add(item)

    def discard(self, name: _Name, item: _Item) -> None:
        items = self._sets.get(name)
        if items is not None:
            items.discard(item)
            if not items:
                del self._sets[name]

    def get(self, name: _Name) -> set[_Item] | frozenset[_Item]:
        return self._sets.get(name, frozenset())


class Selection:
    """Two indexes: pods by each of their labels, Services by one term of their selector.

    A Service without a selector selects nothing: somebody else says what its endpoints are.
    """

    def __init__(self) -> None:
        self._pods: Postings[Term, NamespacedName] = Postings()
        self._services: Postings[Term, NamespacedName] = Postings()
        self._labels: dict[NamespacedName, Mapping[str, str]] = {}
        self._selectors: dict[NamespacedName, Mapping[str, str]] = {}

    def put_pod(self, key: NamespacedName, labels: Mapping[str, str]) -> None:
        self.drop_pod(key)
        self._labels[key] = labels
        for item in labels.items():
            self._pods.add((key[0], *item), key)

    def drop_pod(self, key: NamespacedName) -> None:
        for item in self._labels.pop(key, {}).items():
            self._pods.discard((key[0], *item), key)

    def put_service(self, key: NamespacedName, selector: Mapping[str, str]) -> None:
        self.drop_service(key)
        if selector:
            self._selectors[key] = selector
            self._services.add((key[0], *min(selector.items())), key)

    def drop_service(self, key: NamespacedName) -> None:
        selector = self._selectors.pop(key, None)
        if selector:
            self._services.discard((key[0], *min(selector.items())), key)

    def services_of(self, pod: NamespacedName) -> list[NamespacedName]:
        """Return the Services that select *pod*, in no order."""
        labels = self._labels.get(pod, {})
        found: list[NamespacedName] = []
        for item in labels.items():
            candidates = self._services.get((pod[0], *item))
            found += [service for service in candidates if self._selectors[service].items() <= labels.items()]
        return found

    def pods_of(self, service: NamespacedName) -> list[NamespacedName]:
        """Return the pods that *service* selects, in no order."""
        selector = self._selectors.get(service)
        if not selector:
            return []
        fewest = min((self._pods.get((service[0], *item)) for item in selector.items()), key=len)
        return [pod for pod in fewest if selector.items() <= self._labels[pod].items()]
