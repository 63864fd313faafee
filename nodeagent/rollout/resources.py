"""Where the API server keeps objects of a kind (its discovery documents), and what is done with them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from nodeagent.errors import ConfigError, ControlError
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import APPLY, REQUEST_SECONDS, KubeClient
from nodeagent.kube.pages import Page, as_page, pages
from nodeagent.rollout.manifests import ObjectName, name_of

MANAGER: Final = "nodeagent"
"""Who owns the fields that are applied (server-side apply)."""
PAGE: Final = 500
"""Objects of a listing in pages, where they are not too large together."""
LISTINGS: Final = 3
"""How often a list is begun that the server forgets while it is read."""
MAX_LOG: Final = 1 << 20
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GONE: Final = 410
KEEPING: Final = ("Namespace", "Terminating")
"""With what conditions begin that say what keeps a namespace or a definition that is being removed."""


@dataclass(frozen=True, slots=True)
class ResourceType:
    """How objects of a kind are called in paths."""

    api_version: str
    plural: str
    namespaced: bool

    @property
    def group(self) -> str:
        """The API group; empty: the core's."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the path of a collection, or of the object *name*."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        within = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{quote(name)}" if name else "")


class ClusterObjects:
    """The objects of the cluster that *client* asks."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client
        self._kinds: dict[str, dict[str, ResourceType]] = {}

    async def find(self, api_version: str, kind: str) -> ResourceType | None:
        """Return how the cluster has *kind*; None: it does not know it. Raises ApiError."""
        if kind not in self._kinds.get(api_version, {}):
            self._kinds[api_version] = await self._discover(api_version)
        return self._kinds[api_version].get(kind)

    async def type_of(self, name: ObjectName) -> ResourceType:
        """Return how the cluster has objects like *name*. Raises ConfigError where it does not know them, ApiError."""
        found = await self.find(name.api_version, name.kind)
        if found is None:
            raise ConfigError(
                f"{name}: the cluster has no {name.kind} of {name.api_version}: install what brings it (its "
                "CustomResourceDefinition) first, or choose an overlay without it"
            )
        return found

    async def get(self, name: ObjectName) -> KubeObject | None:
        """Return the object, None: it, or its kind, is not there. Raises ApiError."""
        found = await self.find(name.api_version, name.kind)
        if found is None:
            return None
        try:
            return await self.client.get(found.path(name.namespace, name.name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def remains(self, name: ObjectName) -> str:
        """Return that the object is there yet, and what keeps it, in words; empty: it is gone. Raises ApiError."""
        found = await self.get(name)
        if found is None:
            return ""
        leaving = "deletionTimestamp" in found["metadata"]
        why = [
            each.get("message", "")
            for each in (found.get("status") or {}).get("conditions") or ()
            if leaving and each.get("status") == "True" and str(each.get("type")).startswith(KEEPING)
        ]
        return "; ".join(["it is being removed" if leaving else "it is there", *why])

    async def list(self, api_version: str, kind: str, *, namespace: str = "", labels: str = "") -> list[KubeObject]:
        """Return all objects of *kind*, of *namespace* or of all, with *labels* (a selector); none,
        where the kind is not known. Raises ApiError.
        """
        found = await self.find(api_version, kind)
        if found is None:
            return []
        for _ in range(LISTINGS - 1):
            try:
                return await _listed(self.client, found.path(namespace), labels)
            except ApiError as error:
                if error.status != GONE:
                    raise
        return await _listed(self.client, found.path(namespace), labels)

    async def apply(self, document: KubeObject, *, force: bool = False) -> KubeObject:
        """Have the object of *document* be as it says, and return it. Raises ConfigError, ApiError;
        ControlError, naming who else has set which field.
        """
        name = name_of(document)
        where = (await self.type_of(name)).path(name.namespace, name.name)
        query = urlencode({"fieldManager": MANAGER, "force": str(force).lower()})
        try:
            return await self.client.patch(f"{where}?{query}", document, APPLY)
        except ApiError as error:
            if error.status == CONFLICT:
                raise ControlError(f"{name}: {error}: give --force-conflicts to take these fields over") from None
            raise ApiError(f"{name}: {error}", error.status) from None

    async def delete(self, name: ObjectName, *, grace: int | None = None) -> bool:
        """Remove the object; return whether it was there. Raises ApiError."""
        found = await self.find(name.api_version, name.kind)
        if found is None:
            return False
        query = {"propagationPolicy": "Background", **({} if grace is None else {"gracePeriodSeconds": str(grace)})}
        try:
            await self.client.delete(f"{found.path(name.namespace, name.name)}?{urlencode(query)}")
        except ApiError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    async def log(self, pod: ObjectName, container: str = "") -> str:
        """Return what *container* of *pod* printed; empty: its only one. Raises ApiError."""
        query = urlencode({"limitBytes": str(MAX_LOG), **({"container": container} if container else {})})
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log?{query}"
        try:
            async with asyncio.timeout(REQUEST_SECONDS), aclosing(self.client.lines(path)) as found:
                return "\n".join([line.decode(errors="replace") async for line in found])
        except TimeoutError:
            raise ApiError(f"the log of {pod}: it has no end after {REQUEST_SECONDS:g} s") from None

    async def _discover(self, api_version: str) -> dict[str, ResourceType]:
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            answer = await self.client.get(root)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return {}
            raise
        return {
            each["kind"]: ResourceType(api_version, each["name"], bool(each["namespaced"]))
            for each in answer.get("resources") or ()
            if "/" not in each["name"]
        }


async def _listed(client: KubeClient, path: str, labels: str) -> list[KubeObject]:
    """Return what is in the collection *path* with *labels*. Raises ApiError, with GONE where it takes so
    long that the server has forgotten what it began with.
    """
    selected = {"labelSelector": labels} if labels else {}

    async def ask(wanted: dict[str, str]) -> Page:
        return as_page(await client.get(f"{path}?{urlencode({**wanted, **selected})}"))

    items: list[KubeObject] = []
    async with aclosing(pages(ask, PAGE)) as found:
        async for page in found:
            items += [each for each in page.items if isinstance(each, dict)]
    return items
