"""For tests of the store: wait until certificates were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nodeagent.identity.store import Certificates
from nodeagent.vocabulary import SpiffeId


async def ensure(store: Certificates, identities: Iterable[SpiffeId], seconds: float) -> None:
    """Want all *identities* and wait until the new ones were tried once, at most *seconds*."""
    for identity in identities:
        store.want(identity)
    if store._under_way:
        await asyncio.wait(list(store._under_way.values()), timeout=seconds)
