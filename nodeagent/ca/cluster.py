"""What the authority asks a cluster: whose a token is (TokenReview, authentication.k8s.io/v1), and
which pods run on a node.

Nothing is watched and nothing is kept but who a token was of, for some seconds: a question is as
small as its answer, so that the size of the cluster costs no memory, and any number of replicas may
answer. The rules for pods are those of :mod:`nodeagent.ca.pods`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import quote

from nodeagent.ca.grants import Caller
from nodeagent.ca.pods import accountable
from nodeagent.ca.refusal import Refusal
from nodeagent.errors import IdentityError, ResourceError, shown
from nodeagent.identity.profiles import printable
from nodeagent.identity.spiffe import parse, spiffe_id
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.mesh.local import finished
from nodeagent.resources.objects import PodObject
from nodeagent.resources.objects import parse as parse_object
from nodeagent.vocabulary import SpiffeId

REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCOUNT: Final = "system:serviceaccount:"
POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"
NODE_NAME: Final = "authentication.kubernetes.io/node-name"
"""What a review says of the pod that a token is bound to (k8s.io/apiserver: serviceaccount.UserInfo)."""
KEPT_SECONDS: Final = 10.0
"""How long a token is taken for what it was: the API server keeps it as long (authentication-token-webhook-cache)."""
MAX_KEPT: Final = 10_000
PODS_OF_ONE: Final = 50
"""Pods of one account on one node that are looked at: one that counts is enough."""
NOT_FOUND: Final = 404
FORBIDDEN: Final = 403


class Asks(Protocol):
    """What is asked of the API server: ``KubeClient``."""

    async def get(self, path: str) -> KubeObject:
        """Return the object at *path*. Raises ApiError."""

    async def post(self, path: str, document: Mapping[str, object]) -> KubeObject:
        """Make *document* in the collection *path*. Raises ApiError."""


class ClusterPods:
    """The pods of the cluster, as its API server has them now."""

    def __init__(self, api: Asks, trust_domain: str) -> None:
        self._api = api
        self._trust_domain = trust_domain

    async def runs(self, identity: SpiffeId, node: str) -> bool:
        """Say whether a pod with *identity* runs on *node*. Raises Refusal when that cannot be known now."""
        namespace, account = parse(identity, self._trust_domain)
        selector = quote(f"spec.nodeName={node},spec.serviceAccountName={account}", safe="")
        path = f"/api/v1/namespaces/{namespace}/pods?limit={PODS_OF_ONE}&fieldSelector={selector}"
        # From the API server's memory first; a pod that has just been scheduled may not be there.
        return await self._any(f"{path}&resourceVersion=0") or await self._any(path)

    async def live(self, namespace: str, name: str, uid: str) -> PodObject | None:
        """Return the pod if it is there, has not ended, and has an account that the cluster gave it. Raises Refusal."""
        try:
            found = await self._api.get(f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}")
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise _unavailable(error, "get pods") from None
        pod = _counting(found)
        return pod if pod is not None and pod.uid == uid else None

    async def _any(self, path: str) -> bool:
        try:
            items = (await self._api.get(path)).get("items")
        except ApiError as error:
            raise _unavailable(error, "list pods") from None
        return isinstance(items, list) and any(_counting(item) is not None for item in items)


def _counting(document: object) -> PodObject | None:
    """Return the pod of *document* if its account is one that the cluster gave it, and it has not ended."""
    if not isinstance(document, dict):
        return None
    try:
        pod = parse_object({**document, "kind": "Pod"})  # an item of a list does not name its kind
    except ResourceError:
        return None
    if isinstance(pod, PodObject) and pod.node and accountable(pod) and not finished(pod):
        return pod
    return None


@dataclass(frozen=True, slots=True)
class _Reviewed:
    caller: Caller
    until: float


class TokenReviewer:
    """Has the API server say whose a token is; what it refuses proves nothing."""

    def __init__(
        self,
        api: Asks,
        audiences: Sequence[str],
        trust_domain: str,
        pods: ClusterPods,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*clock* returns seconds."""
        self._api = api
        self._audiences = list(audiences)
        self._trust_domain = trust_domain
        self._pods = pods
        self._clock = clock
        self._kept: OrderedDict[bytes, _Reviewed] = OrderedDict()

    async def validate(self, token: str) -> Caller | None:
        if token.count(".") != 2:
            return None  # no JWT, and so none of Kubernetes'
        key = sha256(token.encode()).digest()
        now = self._clock()
        known = self._kept.get(key)
        if known is not None and now < known.until:
            return known.caller
        caller = await self._caller(await self._review(token))
        self._kept[key] = _Reviewed(caller, now + KEPT_SECONDS)
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return caller

    async def _review(self, token: str) -> Mapping[str, object]:
        """Return the user whom the API server takes *token* for. Raises Refusal."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self._audiences},
        }
        try:
            status = _part(await self._api.post(REVIEWS, review), "status")
        except ApiError as error:
            raise _unavailable(error, "create tokenreviews.authentication.k8s.io") from None
        if status.get("authenticated") is not True:
            why = shown(status.get("error") or "no reason given")
            raise Refusal("UNAUTHENTICATED", f"the API server does not take the token: {why}")
        held = status.get("audiences")
        if not isinstance(held, list) or not any(audience in held for audience in self._audiences):
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token is not for {' or '.join(self._audiences)}: see the projected volume's audience",
            )
        return _part(status, "user")

    async def _caller(self, user: Mapping[str, object]) -> Caller:
        """Return who *user* is: by its pod, which must run, if the token is bound to one. Raises Refusal."""
        namespace, _, account = str(user.get("username")).removeprefix(ACCOUNT).partition(":")
        if not str(user.get("username")).startswith(ACCOUNT):
            raise Refusal("UNAUTHENTICATED", f"{printable([str(user.get('username'))])} is no service account")
        try:
            identity = spiffe_id(self._trust_domain, namespace, account)
        except IdentityError as error:
            raise Refusal("UNAUTHENTICATED", str(error)) from None
        extra = _part(user, "extra")
        name = _first(extra, POD_NAME)
        if not name:
            return Caller(identity)
        uid = _first(extra, POD_UID)
        pod = await self._pods.live(namespace, name, uid)
        if pod is None or pod.service_account != account:
            raise Refusal(
                "UNAUTHENTICATED",
                f"the token's pod {printable([name])}, uid {printable([uid])}, does not run in {namespace} "
                f"as {account}; if it has just begun, ask again",
            )
        node = _first(extra, NODE_NAME)
        if node and node != pod.node:
            words = f"the token names another node than {pod.node}, on which its pod {namespace}/{pod.name} is"
            raise Refusal("UNAUTHENTICATED", words)
        return Caller(identity, pod.node)


def _unavailable(error: ApiError, verb: str) -> Refusal:
    """Return what a caller hears while the API server does not answer the authority's own question."""
    if error.status in (401, FORBIDDEN):
        return Refusal("UNAVAILABLE", f"the authority may not {verb}: its ClusterRole lacks that rule: {error}")
    return Refusal("UNAVAILABLE", f"the API server cannot be asked now: {error}")


def _part(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _first(extra: Mapping[str, object], name: str) -> str:
    values = extra.get(name)
    return str(values[0]) if isinstance(values, list) and values else ""
