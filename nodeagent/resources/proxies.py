"""Which pods bring a proxy of their own, told by their containers: what such a proxy takes is not
captured a second time. And which pods are Istio's own on a node.

Istio's marks of an injected pod say it best (``sidecar.istio.io/status``); sidecars that somebody
wrote into a manifest by hand, or that another mesh injected, have none. Names and images are those
of the injection templates of Istio, Linkerd, Kuma and Consul, and of Envoy's releases.

An Envoy is not always a sidecar: alone in its pod it is the application, an edge proxy for example.
Beside other containers it is one by all appearance, and for certain where something in the pod also
redirects traffic to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from nodeagent.resources.part import Field

IstioPart = Literal["", "ztunnel", "istio-cni"]
SIDECARS: Final = frozenset(("istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane"))
"""Names that injectors give to their container."""
ISTIO_IMAGE: Final = "proxyv2"
ENVOY_IMAGES: Final = frozenset(
    ("envoy", "envoy-alpine", "envoy-contrib", "envoy-debug", "envoy-distroless", "aws-appmesh-envoy", "kuma-dp")
)
"""The last part of an image's name, without its tag."""
REDIRECTING: Final = re.compile(r"(?<![\w-])(?:ip6?tables(?:-(?:legacy|nft|restore))?|istio-iptables|nft)(?![\w-])")
"""Commands that lead a pod's traffic elsewhere."""
REDIRECTING_IMAGES: Final = frozenset((ISTIO_IMAGE, "proxy-init", "kuma-init"))
_REMARKABLE: Final = frozenset((ISTIO_IMAGE, *ENVOY_IMAGES, "ztunnel", "install-cni"))
"""Images by which anything is told here."""
_WORDS_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class OwnProxy:
    """A proxy that a pod brings itself."""

    words: str
    """Which container it is, and by what that is told."""
    certain: bool
    """It takes the pod's traffic; otherwise it only looks like it, and the pod's own label may say otherwise."""


def own_proxy(running: Sequence[Field], initial: Iterable[Field]) -> OwnProxy | None:
    """Return the proxy among the containers that run as long as the pod (*running*: those of its
    spec, and its init containers that are restarted always), None without one; the containers
    *initial* run before and end. Raises ResourceError.
    """
    for container in running:
        name = container.text("name", "")
        if name in SIDECARS or _image(container) == ISTIO_IMAGE:
            return _known(_words(container), True)
    if len(running) < 2:
        return None
    envoys = [container for container in running if _image(container) in ENVOY_IMAGES]
    if not envoys:
        return None
    return _known(_words(envoys[0]), any(_redirects(container) for container in initial))


@lru_cache(256)
def _known(words: str, certain: bool) -> OwnProxy:
    """Return the one object for all pods of a kind: a cluster has thousands."""
    return OwnProxy(words, certain)


def istio_part(labels: Mapping[str, str], running: Iterable[Field]) -> IstioPart:
    """Return which of Istio's programs for a node a pod with *labels* and the containers *running*
    is, by the labels and images of Istio's charts; empty: none of them. Raises ResourceError.
    """
    images = {_image(container) for container in running}
    if labels.get("app") == "ztunnel" or "ztunnel" in images:
        return "ztunnel"
    if labels.get("k8s-app") == "istio-cni-node" or "install-cni" in images:
        return "istio-cni"
    return ""


def is_remarkable(labels: Mapping[str, str], running: Iterable[tuple[str, str]]) -> bool:
    """Say whether :func:`own_proxy` or :func:`istio_part` may find something in a pod with *labels*,
    of whose containers names and images are *running*, and no init container is restarted always.
    """
    if labels.get("app") == "ztunnel" or labels.get("k8s-app") == "istio-cni-node":
        return True
    return any(name in SIDECARS or _plain_name(image) in _REMARKABLE for name, image in running)


def _image(container: Field) -> str:
    return _plain_name(container.text("image", ""))


@lru_cache(1024)
def _plain_name(image: str) -> str:
    """Return the last part of an image's name, without tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def _words(container: Field) -> str:
    return f"its container {container.text('name', '')} ({container.text('image', '')})"[:_WORDS_MAX]


def _redirects(container: Field) -> bool:
    if _image(container) in REDIRECTING_IMAGES:
        return True
    return any(REDIRECTING.search(word) for word in (*container.strings("command"), *container.strings("args")))
