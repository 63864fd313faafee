"""Which endpoints a Service has that no selector names: people, controllers and the API server itself
write them into EndpointSlices (Kubernetes, "Services without selectors").
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.mesh.selection import NamespacedName, Postings
from nodeagent.resources.objects import EndpointSliceObject, SliceEndpoint
from nodeagent.vocabulary import Address


class EndpointSlices:
    """EndpointSlices by the Service that each is for, and Services by the addresses in them."""

    def __init__(self) -> None:
        self._slices: dict[NamespacedName, EndpointSliceObject] = {}
        self._of: Postings[NamespacedName, NamespacedName] = Postings()
        self._at: Postings[Address, NamespacedName] = Postings()
        """Slices by address."""

    def put(self, key: NamespacedName, found: EndpointSliceObject | None) -> set[NamespacedName]:
        """Know the slice *key* as *found*, None: it is gone; return the Services that this concerns."""
        before = self._slices.pop(key, None)
        concerned = set()
        if before is not None:
            concerned.add(_service(before))
            self._of.discard(_service(before), key)
            for endpoint in before.endpoints:
                self._at.discard(endpoint.address, key)
        if found is not None and found.service:
            concerned.add(_service(found))
            self._slices[key] = found
            self._of.add(_service(found), key)
            for endpoint in found.endpoints:
                self._at.add(endpoint.address, key)
        return concerned

    def get(self, key: NamespacedName) -> EndpointSliceObject | None:
        """Return the slice *key*, None: there is none, or it is no Service's."""
        return self._slices.get(key)

    def of(self, service: NamespacedName) -> Iterator[EndpointSliceObject]:
        """Yield the slices of *service*."""
        for key in self._of.get(service):
            yield self._slices[key]

    def ports_at(self, address: Address) -> Iterator[tuple[NamespacedName, str, int]]:
        """Yield the Services that have an endpoint at *address*, ready or not, each with the name and the
        number of a port there.
        """
        for key in self._at.get(address):
            found = self._slices[key]
            yield from ((_service(found), port.name, port.number) for port in found.ports)

    def known(self, service: NamespacedName) -> bool:
        """Say whether there is any slice of *service*, were it an empty one."""
        return bool(self._of.get(service))

    def services_at(self, address: Address) -> set[NamespacedName]:
        """Return the Services that have an endpoint at *address*, ready or not."""
        return {_service(self._slices[key]) for key in self._at.get(address)}

    def endpoints(self, service: NamespacedName, port: str) -> Iterator[tuple[SliceEndpoint, int]]:
        """Yield the endpoints of *service* that are ready, or serve while they end, each with the number of the
        port called *port* there.
        """
        for key in sorted(self._of.get(service)):
            found = self._slices[key]
            number = next((each.number for each in found.ports if each.name == port), None)
            if number is not None:
                yield from ((endpoint, number) for endpoint in found.endpoints if endpoint.ready or endpoint.ending)


def _service(found: EndpointSliceObject) -> NamespacedName:
    return (found.namespace, found.service)
