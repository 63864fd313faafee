"""Istio's annotations of a pod that say what its sidecar captures and uses; source of the rules:
Istio's pkg/kube/inject: validate.go. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Final

from nodeagent.errors import InjectionError, ResourceError
from nodeagent.inject.model import Document, show
from nodeagent.istio import STATUS_PORT
from nodeagent.resources import yaml_text
from nodeagent.resources.quantity import quantity
from nodeagent.sidecar.rules import MAX_ITEMS

PREFIX: Final = "traffic.sidecar.istio.io/"
NATIVE: Final = "sidecar.istio.io/nativeSidecar"
REWRITE: Final = "sidecar.istio.io/rewriteAppHTTPProbers"
PROXY_CONFIG: Final = "proxy.istio.io/config"
IMAGE: Final = "sidecar.istio.io/proxyImage"
_ALONE: Final = {
    "sidecar.istio.io/interceptionMode": "REDIRECT",
    "status.sidecar.istio.io/port": str(STATUS_PORT),
    "inject.istio.io/templates": "sidecar",
}
"""Annotation -> its one value that means what is done here."""
_RESOURCES: Final = {
    "proxyCPU": ("requests", "cpu"),
    "proxyMemory": ("requests", "memory"),
    "proxyCPULimit": ("limits", "cpu"),
    "proxyMemoryLimit": ("limits", "memory"),
}
_TRUTH: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def ports(text: str) -> str:
    """Return the comma-separated ports of *text* without blanks; raises ValueError saying what is allowed."""
    found = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 and 0 < int(part) < 65536 for part in found):
        raise ValueError("ports from 1 to 65535, separated by commas")
    if len(found) > MAX_ITEMS:
        raise ValueError(f"at most {MAX_ITEMS} ports")
    return ",".join(found)


def ranges(text: str) -> str:
    """Return the comma-separated address ranges of *text* without blanks; raises ValueError saying what is allowed."""
    found = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(found) > MAX_ITEMS:
        raise ValueError(f"at most {MAX_ITEMS} ranges")
    try:
        return ",".join(str(ip_network(part, strict=False)) if "/" in part else str(ip_network("")) for part in found)
    except ValueError:
        raise ValueError("address ranges as 10.0.0.0/8 or fd00::/8, separated by commas") from None


def _or_all(read: Callable[[str], str]) -> Callable[[str], str]:
    def checked(text: str) -> str:
        try:
            return "*" if text.strip() == "*" else read(text)
        except ValueError as error:
            raise ValueError(f"{error}, or * for all") from None

    return checked


CAPTURE: Final[dict[str, Callable[[str], str]]] = {
    "includeInboundPorts": _or_all(ports),
    "excludeInboundPorts": ports,
    "includeOutboundPorts": ports,
    "excludeOutboundPorts": ports,
    "includeOutboundIPRanges": _or_all(ranges),
    "excludeOutboundIPRanges": ranges,
}
"""Name of the annotation after PREFIX, and of the value that holds its default -> how it is read."""


def refuse_unknown(annotations: Mapping[str, str]) -> None:
    """Raise InjectionError for an annotation of Istio's that asks for another capture or another sidecar than there
    is here: to be injected without what it asks for would be worse than not to be.
    """
    for name, text in annotations.items():
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in CAPTURE:
            known = ", ".join(CAPTURE)
            raise InjectionError(f"metadata.annotations[{name:.120}]: not known here: allowed of {PREFIX}: {known}")
        if name in _ALONE and text.strip() != _ALONE[name]:
            raise _wrong(name, text, f"{_ALONE[name]}, which is what there is here")


def capture(annotations: Mapping[str, str], values: Document) -> dict[str, str]:
    """Return for each name of CAPTURE what the pod's sidecar captures: the annotation's word, else
    that of *values*. Raises InjectionError naming the annotation or value, and what is allowed.
    """
    found = {}
    for name, read in CAPTURE.items():
        given = PREFIX + name in annotations
        text = annotations[PREFIX + name] if given else values[name]
        try:
            found[name] = read(text)
        except ValueError as error:
            raise (
                _wrong(PREFIX + name, text, str(error))
                if given
                else InjectionError(f"values.{name}: {show(text)}: allowed: {error}")
            ) from None
    return found


def resources(annotations: Mapping[str, str], default: Document) -> Document:
    """Return the proxy's resources: one annotation replaces all of *default*, as in Istio's
    template. Raises InjectionError.
    """
    found: Document = {}
    for name, (part, resource) in _RESOURCES.items():
        text = annotations.get(f"sidecar.istio.io/{name}")
        if text is None:
            continue
        try:
            if quantity(text) < 0:
                raise ValueError("a quantity of at least 0")
        except ValueError as error:
            raise _wrong(f"sidecar.istio.io/{name}", text, str(error)) from None
        found.setdefault(part, {})[resource] = text
    return found or default


def flag(annotations: Mapping[str, str], name: str, default: bool) -> bool:
    """Return the truth that the annotation *name* states in one of Go's ways (strconv.ParseBool),
    else *default*. Raises InjectionError for any other text.
    """
    text = annotations.get(name)
    if text is None:
        return default
    if text not in _TRUTH:
        raise _wrong(name, text, "true, false")
    return _TRUTH[text]


def proxy_config(annotations: Mapping[str, str]) -> tuple[bool | None, int | None]:
    """Return holdApplicationUntilProxyStarts and concurrency of the annotation PROXY_CONFIG, None
    for what it does not say. Raises InjectionError.

    The rest of Istio's ProxyConfig is about a control plane, which is not there.
    """
    text = annotations.get(PROXY_CONFIG)
    if text is None:
        return None, None
    try:
        found = yaml_text.one(text)
    except ResourceError:
        raise _wrong(PROXY_CONFIG, text, "a YAML mapping") from None
    if found is None:
        return None, None
    if not isinstance(found, dict):
        raise _wrong(PROXY_CONFIG, text, "a YAML mapping")
    hold = found.get("holdApplicationUntilProxyStarts")
    concurrency = found.get("concurrency")
    if hold is not None and not isinstance(hold, bool):
        raise _wrong(f"{PROXY_CONFIG}].[holdApplicationUntilProxyStarts", hold, "true, false")
    if concurrency is not None and (
        isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= 256
    ):
        raise _wrong(f"{PROXY_CONFIG}].[concurrency", concurrency, "a number from 1 to 256")
    return hold, concurrency


def _wrong(name: str, text: object, allowed: str) -> InjectionError:
    return InjectionError(f"metadata.annotations[{name}]: {show(text)}: allowed: {allowed}")
