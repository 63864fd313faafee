"""What a route to a pod of an ambient mesh holds. It stays as long as a route or a connection of it does."""

from __future__ import annotations

from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, Dialled
from nodeagent.proxy.hbone.client import HbonePool
from nodeagent.proxy.shared.lease import Lease


class HboneTunnel:
    """Carries the connections of one of our pods to one pod, whose proxy *dial* reaches."""

    def __init__(self, context: Context, dial: Dial) -> None:
        self._dial = dial
        self._pool = HbonePool(context, dial, self._retired)

    async def lead(self, address: str, port: int) -> Dialled:
        """Return a connection to *port* at *address*, the pod's own. Raises DialError."""
        return await self._pool.lead(address, port)

    def sweep(self, now: float, idle: float) -> None:
        """Close what idled for *idle* seconds at *now* (monotonic), and all where the pod is gone that dialled."""
        self._pool.sweep(now, -1.0 if self._dial.pod.gone else idle)

    def _retired(self, lease: Lease) -> None:
        """Who uses streams of a connection that takes no new ones looks at its lease now and then."""
