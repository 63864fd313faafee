"""Keeps the caBundle of the webhook's registration equal to the roots of its authority, whoever
wrote something else there.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import KubeClient

PATH: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
LOOK_SECONDS: Final = 5.0
"""How long a wrong caBundle stays: Istio's webhooks fail for as long."""
MAX_DELAY: Final = 60.0
CONFLICT: Final = 409
Sleep = Callable[[float], Awaitable[None]]
log = logging.getLogger("nodeagent.webhook")


def repair(configuration: KubeObject, roots_pem: bytes) -> KubeObject | None:
    """Return the strategic merge patch that gives every webhook of *configuration* the caBundle
    *roots_pem*; None: they have it.

    It holds the resource's version: whatever was changed meanwhile is not overwritten but looked at
    anew. Raises ApiError: not such an object.
    """
    bundle = base64.b64encode(roots_pem).decode()
    try:
        wrong = [
            webhook["name"]
            for webhook in configuration.get("webhooks") or ()
            if webhook["clientConfig"].get("caBundle") != bundle
        ]
        version = configuration["metadata"]["resourceVersion"]
    except (KeyError, TypeError, AttributeError):
        raise ApiError("the API server's answer is no MutatingWebhookConfiguration") from None
    if not wrong:
        return None
    return {
        "metadata": {"resourceVersion": version},
        "webhooks": [{"name": name, "clientConfig": {"caBundle": bundle}} for name in wrong],
    }


class RegistrationKeeper:
    """Keeps the caBundle of one registration right: looks at it every LOOK_SECONDS, and less often
    (at most MAX_DELAY seconds apart) while the API server answers with errors.
    """

    def __init__(
        self,
        api: KubeClient,
        name: str,
        roots: Callable[[], bytes],
        count: Callable[[str], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Keep the registration *name* of *api*. *roots* returns the authority's roots as PEM,
        *count* takes ``right``, ``repaired`` or ``failed`` after each look.
        """
        self._api = api
        self._path = f"{PATH}/{name}"
        self._roots = roots
        self._count = count
        self._sleep = sleep

    async def run(self) -> None:
        """Look at the registration again and again, and repair it, until cancelled; errors are
        logged and counted.
        """
        delay = LOOK_SECONDS
        while True:
            try:
                await self.look()
                delay = LOOK_SECONDS
            except ApiError as error:
                self._count("failed")
                # A conflict is no trouble: the next look sees what the other has written.
                delay = LOOK_SECONDS if error.status == CONFLICT else min(2 * delay, MAX_DELAY)
                log.error("%s; the caBundle is looked at again in %.0f s", error, delay)
            await self._sleep(delay)

    async def look(self) -> None:
        """Compare the registration's caBundle with the authority's roots once, and repair it if
        need be. Raises ApiError.
        """
        patch = repair(await self._api.get(self._path), self._roots())
        if patch is not None:
            await self._api.patch(self._path, patch)
            log.info("caBundle of %s set", ", ".join(webhook["name"] for webhook in patch["webhooks"]))
        self._count("repaired" if patch is not None else "right")
