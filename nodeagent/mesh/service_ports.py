"""What the ports of a policy that is attached to a Service mean at one of its pods. Pure.

Who writes ``targetRefs`` writes the Service's ports, as for Istio's waypoints, which stand in front of the
Service; here the pod's own port is known. A port of the Service is where it leads: what several lead to is
meant by each of them. A number that is no port of the Service is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from nodeagent.mesh.rules import target_port
from nodeagent.policy.model import AuthorizationPolicy, Condition, Operation, Rule
from nodeagent.resources.objects import PodObject, ServiceObject

_NOBODYS: Final = 0
"""No connection has this port. An empty list would be every port."""
_KEY: Final = "destination.port"


def ports_at(
    service: ServiceObject, pod: PodObject, named: Iterable[tuple[str, int]], *, selected: bool
) -> Iterator[tuple[int, int]]:
    """Yield each port of *service* with one of *pod*'s to which it leads: as the Service says where that
    *selected* it, and by the ports, *named* with their numbers, of EndpointSlices that the pod is in.
    """
    by_name = list(named)
    for port in service.ports:
        if port.transport != "TCP":
            continue
        number = target_port(port, pod) if selected else None
        if number is not None:
            yield port.port, number
        yield from ((port.port, number) for name, number in by_name if name == port.name)


def ports_of(policy: AuthorizationPolicy) -> set[int]:
    """Return the ports that *policy* names."""
    found: set[int] = set()
    for rule in policy.rules:
        for operation in rule.operations:
            found.update(operation.ports, operation.not_ports)
        for condition in rule.conditions:
            if condition.key == _KEY:
                found.update(map(int, (*condition.values, *condition.not_values)))
    return found


def at_workload(policy: AuthorizationPolicy, leads: Mapping[int, Iterable[int]]) -> AuthorizationPolicy:
    """Return *policy* with workload ports in the place of a Service's, by where each *leads*; the same
    object where that changes nothing.
    """
    reached = {port: tuple(sorted(set(leads.get(port, ())))) for port in sorted(ports_of(policy))}
    if all(numbers == (port,) for port, numbers in reached.items()):
        return policy
    words = ",".join(f"{port}:{'+'.join(map(str, numbers))}" for port, numbers in reached.items())
    return replace(policy, rules=tuple(_rule(rule, reached) for rule in policy.rules), service_ports=words)


class Translated:
    """What :func:`at_workload` made of policies, by the keys of its entries."""

    def __init__(self) -> None:
        self._policies: dict[str, AuthorizationPolicy] = {}
        self.made: set[str] = set()
        """What was made lately; who looks clears it."""

    def at_workload(self, policy: AuthorizationPolicy, leads: Mapping[int, Iterable[int]]) -> AuthorizationPolicy:
        """Do what the function does, and keep what it makes."""
        found = at_workload(policy, leads)
        if found is not policy:
            self.made.add(found.key)
            self._policies[found.key] = found
        return found

    def get(self, key: str) -> AuthorizationPolicy | None:
        return self._policies.get(key)

    def drop(self, key: str) -> None:
        """Forget what stands under *key*: nobody uses it."""
        self._policies.pop(key, None)


def _rule(rule: Rule, reached: Mapping[int, tuple[int, ...]]) -> Rule:
    operations = tuple(_operation(each, reached) for each in rule.operations)
    conditions = tuple(_condition(each, reached) if each.key == _KEY else each for each in rule.conditions)
    return replace(rule, operations=operations, conditions=conditions)


def _operation(operation: Operation, reached: Mapping[int, tuple[int, ...]]) -> Operation:
    return replace(
        operation, ports=_numbers(operation.ports, reached), not_ports=_numbers(operation.not_ports, reached)
    )


def _condition(condition: Condition, reached: Mapping[int, tuple[int, ...]]) -> Condition:
    values = _numbers(map(int, condition.values), reached)
    not_values = _numbers(map(int, condition.not_values), reached)
    return replace(condition, values=tuple(map(str, values)), not_values=tuple(map(str, not_values)))


def _numbers(ports: Iterable[int], reached: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for port in ports:
        found.update(dict.fromkeys(reached[port] or (_NOBODYS,)))
    return tuple(found)
