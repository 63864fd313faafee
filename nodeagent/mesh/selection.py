"""Which Services select which pods, both ways, at the cost of what matches and not of what exists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Generic, TypeVar

from nodeagent.mesh.alike import Alike

NamespacedName = tuple[str, str]
"""Namespace and name."""
Term = tuple[str, str, str]
"""Namespace, label, value."""
Likeness = tuple[str, frozenset[Term]]
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


class PodLabels:
    """The pods by those of their labels that somebody asks for: one can have thousands that nobody does.

    A scope is a namespace; empty, the whole mesh.
    """

    def __init__(self) -> None:
        self._labels: dict[NamespacedName, Mapping[str, str]] = {}
        self._in: Postings[str, NamespacedName] = Postings()
        self._asked: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By scope, how often for which names of labels."""
        self._pods: Postings[Term, NamespacedName] = Postings()
        self._alike = Alike()
        """Which pods a selector selects."""

    def put(self, pod: NamespacedName, labels: Mapping[str, str]) -> None:
        """Know *pod*, or know it anew."""
        self.drop(pod)
        self._alike.clear()
        self._labels[pod] = labels
        self._in.add(pod[0], pod)
        for term in self.terms(pod):
            self._pods.add(term, pod)

    def drop(self, pod: NamespacedName) -> None:
        self._alike.clear()
        for term in self.terms(pod):
            self._pods.discard(term, pod)
        self._in.discard(pod[0], pod)
        self._labels.pop(pod, None)

    def within(self, scope: str) -> Set[NamespacedName]:
        """Return the pods of *scope*."""
        return self._in.get(scope) if scope else self._labels.keys()

    def terms(self, pod: NamespacedName) -> list[Term]:
        """Return the labels of *pod* that are asked for, in the scopes in which they are."""
        labels = self._labels.get(pod, {})
        found: list[Term] = []
        for scope in (pod[0], ""):
            asked: Mapping[str, int] = self._asked.get(scope, {})
            found += [(scope, name, labels[name]) for name in asked.keys() & labels.keys()]
        return found

    def forget(self) -> None:
        """Keep no result: there will not soon be many questions that are alike."""
        self._alike.clear()

    def likeness(self, pod: NamespacedName) -> Likeness:
        """Return what every selector makes the same of: the namespace, and the labels that are asked for."""
        return pod[0], frozenset(self.terms(pod))

    def matches(self, pod: NamespacedName, selector: Mapping[str, str]) -> bool:
        """Say whether *pod* has all labels of *selector*."""
        labels = self._labels.get(pod, {})
        return all(labels.get(name) == value for name, value in selector.items())

    def ask(self, scope: str, names: Iterable[str]) -> None:
        """Somebody selects pods of *scope* by labels with *names*, until :meth:`release`."""
        asked = self._asked[scope]
        for name in names:
            asked[name] += 1
            if asked[name] > 1:
                continue
            for pod in self.within(scope):
                if name in self._labels[pod]:
                    self._pods.add((scope, name, self._labels[pod][name]), pod)

    def release(self, scope: str, names: Iterable[str]) -> None:
        asked = self._asked[scope]
        for name in names:
            asked[name] -= 1
            if asked[name]:
                continue
            del asked[name]
            for pod in self.within(scope):
                if name in self._labels[pod]:
                    self._pods.discard((scope, name, self._labels[pod][name]), pod)

    def selected(self, scope: str, selector: Mapping[str, str]) -> tuple[NamespacedName, ...]:
        """Return the pods of *scope* that *selector* selects, in no order; its names are asked for there."""
        return self._alike.once((scope, frozenset(selector.items())), lambda: self._selected(scope, selector))

    def _selected(self, scope: str, selector: Mapping[str, str]) -> tuple[NamespacedName, ...]:
        fewest = min((self._pods.get((scope, *item)) for item in selector.items()), key=len)
        return tuple(pod for pod in fewest if self.matches(pod, selector))


class Selection:
    """Which Services select which of *pods*, both ways.

    A Service without a selector selects nothing: somebody else says what its endpoints are.
    """

    def __init__(self, pods: PodLabels) -> None:
        self._pods = pods
        self._services: Postings[Term, NamespacedName] = Postings()
        self._selectors: dict[NamespacedName, Mapping[str, str]] = {}
        self._alike = Alike()
        """Which Services select pods that are alike."""

    def put_service(self, key: NamespacedName, selector: Mapping[str, str]) -> None:
        self.drop_service(key)
        if selector:
            self._alike.clear()
            self._selectors[key] = selector
            self._pods.ask(key[0], selector)
            self._services.add((key[0], *min(selector.items())), key)

    def drop_service(self, key: NamespacedName) -> None:
        selector = self._selectors.pop(key, None)
        if selector:
            self._alike.clear()
            self._services.discard((key[0], *min(selector.items())), key)
            self._pods.release(key[0], selector)

    def services_of(self, pod: NamespacedName) -> tuple[NamespacedName, ...]:
        """Return the Services that select *pod*, in no order; the same object for pods that are alike, while
        no Service changes.
        """
        likeness = self._pods.likeness(pod)
        return self._alike.once(likeness, lambda: tuple(self._selecting(pod, likeness[1])))

    def _selecting(self, pod: NamespacedName, terms: Iterable[Term]) -> Iterator[NamespacedName]:
        for term in terms:
            for service in self._services.get(term):
                if self._pods.matches(pod, self._selectors[service]):
                    yield service

    def pods_of(self, service: NamespacedName) -> tuple[NamespacedName, ...]:
        """Return the pods that *service* selects, in no order; the same object for Services with one
        selector, while no pod changes.
        """
        selector = self._selectors.get(service)
        return self._pods.selected(service[0], selector) if selector else ()

    def forget(self) -> None:
        """Keep no result: there will not soon be many questions that are alike."""
        self._alike.clear()
        self._pods.forget()

    def selector_of(self, service: NamespacedName) -> frozenset[tuple[str, str]]:
        """Return what *service* selects pods of its namespace by; empty: nothing."""
        return frozenset(self._selectors.get(service, {}).items())
