"""Kubernetes' tokens for pods (TokenRequest, KEP-1205): JWTs by the API server, bound to a service
account, a pod and its node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import isinf
from typing import Final

from nodeagent.ca.grants import Caller
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.settings import ServiceAccountTokens
from nodeagent.ca.tokens import WatchedFile
from nodeagent.errors import IdentityError
from nodeagent.identity.profiles import printable
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.policy.jwt_keys import KeySet
from nodeagent.policy.jwt_token import Token, TokenError, parse
from nodeagent.resources.objects import PodObject

SKEW_SECONDS: Final = 60.0
Live = Callable[[str, str, str], PodObject | None]
"""Namespace, name and uid -> the pod, None when no such pod runs."""


class ServiceAccountValidator:
    """Knows tokens of one issuer; others are of another kind."""

    def __init__(
        self, settings: ServiceAccountTokens, trust_domain: str, live: Live, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises IdentityError when the keys cannot be read."""
        self._settings = settings
        self._trust_domain = trust_domain
        self._live = live
        self._clock = clock
        self._keys = WatchedFile(settings.keys, jwks, private=False)

    async def validate(self, token: str) -> Caller | None:
        try:
            parsed = parse(token)
        except TokenError:
            return None
        if parsed.issuer != self._settings.issuer:
            return None
        try:
            self._keys.get().check(parsed)
        except TokenError:
            raise Refusal("UNAUTHENTICATED", "the token's signature is not by a key of the issuer") from None
        self._check_claims(parsed)
        return self._caller(parsed.claims)

    def _check_claims(self, token: Token) -> None:
        now = self._clock()
        if isinf(token.expires):
            raise Refusal("UNAUTHENTICATED", "the token's exp is missing")
        if now >= token.expires + SKEW_SECONDS:
            raise Refusal("UNAUTHENTICATED", f"the token has ended {now - token.expires:.0f} s ago")
        if now < token.not_before - SKEW_SECONDS:
            raise Refusal("UNAUTHENTICATED", "the token does not hold yet")
        if not any(audience in token.audiences for audience in self._settings.audiences):
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token is not for {' or '.join(self._settings.audiences)}: see the projected volume's audience",
            )

    def _caller(self, claims: Mapping[str, object]) -> Caller:
        kubernetes = _mapping(claims.get("kubernetes.io"))
        namespace = kubernetes.get("namespace")
        account = _mapping(kubernetes.get("serviceaccount")).get("name")
        if (
            not isinstance(namespace, str)
            or not isinstance(account, str)
            or claims.get("sub") != f"system:serviceaccount:{namespace}:{account}"
        ):
            raise Refusal(
                "UNAUTHENTICATED",
                "the token is not a service account's: its subject and its kubernetes.io claims do not fit together",
            )
        try:
            identity = spiffe_id(self._trust_domain, namespace, account)
        except IdentityError as error:
            raise Refusal("UNAUTHENTICATED", str(error)) from None
        if "pod" not in kubernetes:
            return Caller(identity)
        return Caller(identity, self._node(namespace, account, kubernetes))

    def _node(self, namespace: str, account: str, kubernetes: Mapping[str, object]) -> str:
        """Return the node of the live pod that the token is bound to: what the cluster says, which
        the token may only confirm. Raises Refusal.
        """
        claimed = _mapping(kubernetes["pod"])
        name = str(claimed.get("name"))
        uid = str(claimed.get("uid"))
        pod = self._live(namespace, name, uid)
        if pod is None:
            which = f"{printable([name])}, uid {printable([uid])},"
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token's pod {which} does not run in {namespace}; if it has just begun, ask again",
            )
        if pod.service_account != account:
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token is of {account}, and its pod {namespace}/{pod.name} runs as {pod.service_account}",
            )
        # Since Kubernetes 1.30 a token names its node as well.
        if "node" in kubernetes and _mapping(kubernetes["node"]).get("name") != pod.node:
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token names another node than {pod.node}, on which its pod {namespace}/{pod.name} is",
            )
        return pod.node


def jwks(content: bytes) -> KeySet:
    """Return the keys of a JWKS document (RFC 7517); what is no key to verify with is left out.
    Raises IdentityError.
    """
    try:
        keys = KeySet(content.decode())
    except UnicodeDecodeError:
        raise IdentityError("not a JWKS document: not UTF-8") from None
    if keys.error:
        raise IdentityError(f"not a JWKS document with keys for signatures: {keys.error}")
    return keys


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
