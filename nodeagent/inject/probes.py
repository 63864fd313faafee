"""Probes of a pod's containers, led through its sidecar: the kubelet has no certificate, and a
captured port would answer for the proxy. Pure.

Source: Istio's pkg/kube/inject: app_probe.go. A probe that names a host is not for the pod, so it
stays; a port's name becomes its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nodeagent.errors import InjectionError
from nodeagent.inject.model import Document, show
from nodeagent.inject.shape import (
    PROBES,
    ContainerShape,
    GrpcShape,
    HandlerShape,
    HttpGetShape,
    PodShape,
    ProbeShape,
    TcpSocketShape,
)
from nodeagent.istio import STATUS_PORT

_WORDS: Final = dict(zip(PROBES, ("readyz", "livez", "startupz"), strict=True))
_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc")


def path(container: str, field: str) -> str:
    """Return where the sidecar answers for the probe *field* of *container*."""
    return f"/app-health/{container}/{_WORDS[field]}"


def rewrite(pod: PodShape, spec: Document) -> tuple[Document, Document]:
    """Lead the probes in *spec*, which *pod* describes, to the sidecar.

    Return two mappings: path -> {httpGet | tcpSocket | grpc: what to ask, timeoutSeconds}, as
    Istio's agent takes it, and what :func:`restore` needs: container -> probe's field -> the
    handler that stood there. Raises InjectionError for a port's name that is none.
    """
    asked: Document = {}
    before: Document = {}
    raw = {container["name"]: container for container in _containers(spec)}
    for at, container in pod.containers():
        for field in PROBES:
            probe = container.probe(field)
            kind = _kind(probe) if probe else None
            if probe is None or kind is None:
                continue
            held = raw[container.name][field]
            handler = held[kind]
            target = path(container.name, field)
            asked[target] = {
                kind: handler | {"port": _number(f"{at}.{field}.{kind}", container, probe)},
                "timeoutSeconds": probe.timeout_seconds or 1,
            }
            before.setdefault(container.name, {})[field] = {kind: handler}
            kept = {name: handler[name] for name in ("httpHeaders",) if kind == "httpGet" and name in handler}
            raw[container.name][field] = _replaced(held, kind, "httpGet", {"path": target, "port": STATUS_PORT} | kept)
    return asked, before


def restore(spec: Document, before: Document) -> None:
    """Undo :func:`rewrite` in *spec*, for probes that still ask the sidecar."""
    for container in _containers(spec):
        for field, handler in before.get(container["name"], {}).items():
            held = container.get(field) or {}
            if (held.get("httpGet") or {}).get("path") == path(container["name"], field):
                ((kind, value),) = handler.items()
                container[field] = _replaced(held, "httpGet", kind, value)


def _containers(spec: Document) -> Iterator[Document]:
    """Yield the pod's containers, those of its start first."""
    for name in ("initContainers", "containers"):
        yield from spec.get(name) or ()


def _kind(probe: HandlerShape) -> str | None:
    """Return the handler that is rewritten; None: ``exec``, or one that asks another host."""
    found: tuple[HttpGetShape | TcpSocketShape | GrpcShape | None, ...] = (probe.http_get, probe.tcp_socket, probe.grpc)
    for kind, handler in zip(_HANDLERS, found, strict=True):
        if handler is not None:
            return None if getattr(handler, "host", None) else kind
    return None


def _number(at: str, container: ContainerShape, probe: ProbeShape) -> int:
    handler = probe.http_get or probe.tcp_socket or probe.grpc
    assert handler is not None
    if isinstance(handler.port, int):
        return handler.port
    named = {port.name: port.container_port for port in container.ports or () if port.name}
    if handler.port not in named:
        known = ", ".join(named) or "none has one"
        raise InjectionError(
            f"{at}.port: {show(handler.port)}: allowed: a number, or the name of one of this container's ports "
            f"({known})"
        )
    return named[handler.port]


def _replaced(mapping: Document, old: str, new: str, value: object) -> Document:
    """Return *mapping* with the key *old* exchanged for *new*, in its place."""
    return {(new if key == old else key): (value if key == old else each) for key, each in mapping.items()}
