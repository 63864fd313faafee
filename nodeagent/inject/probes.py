"""Probes and hooks of a pod's containers, led through its sidecar: the kubelet has no certificate, and a
captured port would answer for the proxy. Pure.

Source: Istio's pkg/kube/inject: app_probe.go. What names a host is not for the pod, so it
stays; a port's name becomes its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nodeagent.errors import InjectionError
from nodeagent.inject.model import Document, show
from nodeagent.inject.shape import (
    HOOKS,
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

_WORDS: Final = dict(zip((*PROBES, *HOOKS), ("readyz", "livez", "startupz", "poststartz", "prestopz"), strict=True))
_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc")
_HOOK_SECONDS: Final = 3600
"""Kubernetes gives a hook no time of its own: the pod's grace period ends it."""


def path(container: str, field: str) -> str:
    """Return where the sidecar answers for the probe or hook *field* of *container*."""
    return f"/app-{'lifecycle' if field in HOOKS else 'health'}/{container}/{_WORDS[field]}"


def rewrite(pod: PodShape, spec: Document, native: bool) -> tuple[Document, Document]:
    """Lead the probes and hooks in *spec*, which *pod* describes, to the sidecar, which is a *native* one or not.

    Return two mappings: path -> {httpGet | tcpSocket | grpc: what to ask, timeoutSeconds}, as
    Istio's agent takes it, and what :func:`restore` needs: container -> field -> the
    handler that stood there. Raises InjectionError for a port's name that is none, and for a probe that keeps the
    sidecar from starting.
    """
    asked: Document = {}
    before: Document = {}
    raw = {container["name"]: container for container in _containers(spec)}
    for at, container in pod.containers():
        for field in _WORDS:
            handler_shape = container.handler(field)
            kind = _kind(handler_shape, field) if handler_shape else None
            if handler_shape is None or kind is None:
                continue
            where = f"{at}.lifecycle.{field}" if field in HOOKS else f"{at}.{field}"
            if container.restart_policy == "Always" and at.startswith("spec.initContainers") and not native:
                _refuse_too_early(where, field)
            place = _place(raw[container.name], field)
            held = place[field]
            handler = held[kind]
            target = path(container.name, field)
            port = _number(f"{where}.{kind}", container, handler_shape)
            asked[target] = {kind: handler | {"port": port}, "timeoutSeconds": _seconds(handler_shape)}
            before.setdefault(container.name, {})[field] = {kind: handler}
            kept = {name: handler[name] for name in ("httpHeaders",) if kind == "httpGet" and name in handler}
            place[field] = _replaced(held, kind, "httpGet", {"path": target, "port": STATUS_PORT} | kept)
    return asked, before


def restore(spec: Document, before: Document) -> None:
    """Undo :func:`rewrite` in *spec*, for what still asks the sidecar."""
    for container in _containers(spec):
        for field, handler in before.get(container["name"], {}).items():
            place = _place(container, field)
            held = place.get(field) or {}
            if (held.get("httpGet") or {}).get("path") == path(container["name"], field):
                ((kind, value),) = handler.items()
                place[field] = _replaced(held, "httpGet", kind, value)


def _place(container: Document, field: str) -> Document:
    """Return the mapping of *container* that holds *field*; an empty one where there is none."""
    return (container.get("lifecycle") or {}) if field in HOOKS else container


def _refuse_too_early(where: str, field: str) -> None:
    """A native sidecar of the pod's own is there before the proxy, which waits for it to have started: until then
    nobody answers in the proxy's stead.
    """
    if field != "readinessProbe":
        raise InjectionError(
            f"{where}: allowed: exec, or none: this container starts before the sidecar that would answer: a native "
            'sidecar is there first (--native, or the annotation sidecar.istio.io/nativeSidecar: "true")'
        )


def _seconds(handler: HandlerShape) -> int:
    return (handler.timeout_seconds or 1) if isinstance(handler, ProbeShape) else _HOOK_SECONDS


def _containers(spec: Document) -> Iterator[Document]:
    """Yield the pod's containers, those of its start first."""
    for name in ("initContainers", "containers"):
        yield from spec.get(name) or ()


def _kind(probe: HandlerShape, field: str) -> str | None:
    """Return the handler in *field* that is rewritten; None: ``exec``, or one that asks another host."""
    if field in HOOKS and probe.http_get is None:
        return None  # a hook's tcpSocket has never been asked (Kubernetes' API), and it has no grpc
    found: tuple[HttpGetShape | TcpSocketShape | GrpcShape | None, ...] = (probe.http_get, probe.tcp_socket, probe.grpc)
    for kind, handler in zip(_HANDLERS, found, strict=True):
        if handler is not None:
            return None if getattr(handler, "host", None) else kind
    return None


def _number(at: str, container: ContainerShape, probe: HandlerShape) -> int:
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
