"""Which identity a caller gets: its own; a node's agent those of the pods on its node, and no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

from nodeagent.ca.refusal import Refusal
from nodeagent.errors import IdentityError
from nodeagent.identity.spiffe import parse
from nodeagent.vocabulary import SpiffeId


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a token proves to be asking."""

    identity: SpiffeId
    node: str = ""
    """The node it runs on, as the token or its pod says; empty: not known."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What callers may have."""

    trust_domain: str
    node_agents: Set[SpiffeId]
    """Identities that may ask for others."""
    runs: Callable[[SpiffeId, str], Awaitable[bool]]
    """Identity, node -> whether a pod with that identity runs there; may raise Refusal."""

    async def identity(self, caller: Caller, impersonated: str) -> SpiffeId:
        """Return the identity that *caller* gets when it asks for *impersonated* (empty: its own). Raises Refusal."""
        if not impersonated or impersonated == caller.identity:
            return caller.identity
        try:
            parse(impersonated, self.trust_domain)
        except IdentityError as error:
            raise Refusal("INVALID_ARGUMENT", f"ImpersonatedIdentity: {error}") from None
        if caller.identity not in self.node_agents:
            raise Refusal(
                "PERMISSION_DENIED", f"{caller.identity} is no node's agent and may only have its own identity"
            )
        if not caller.node:
            raise Refusal("PERMISSION_DENIED", f"the token of {caller.identity} does not say on which node it is")
        if not await self.runs(SpiffeId(impersonated), caller.node):
            raise Refusal("PERMISSION_DENIED", f"no pod on node {caller.node} is {impersonated}")
        return SpiffeId(impersonated)
