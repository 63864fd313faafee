"""Pods as the API server writes them in protobuf (Kubernetes API concepts, "Alternate representations
of resources").

Theory of operation
-------------------

All pods of a large cluster are 6 KB each as JSON, and making objects of that is most of what it costs
to know them. In protobuf a list is a third smaller and takes the server half of the time, and here no
more becomes an object than what is asked for. Custom resources have no such form, and what else is
followed is not worth two.

    page ──▶ read_list()  the list, and where it goes on
              │ each pod
              ├─▶ ordinary()   of another node, with nothing about it: straight into what is kept
              └─▶ document()   this node's, one that may bring a proxy, one with a field that is
                               wrong: the document that JSON would have been, read as all others

So there is one reader that knows the rules and says what is wrong, and beside it one that is right
about most pods and passes on the others; the tests hold both to the same results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.lean import Lean, useful
from nodeagent.protocols.pods_pb2 import Container, Envelope, IntOrString, Pod, PodList
from nodeagent.resources.objects import NAME, NAMESPACE, POD_UID, PodObject
from nodeagent.resources.proxies import is_remarkable
from nodeagent.vocabulary import Address, PodUid, canonical_address

MAGIC: Final = b"k8s\x00"
"""How everything in this form begins; nothing in JSON does."""
_INLINE: Final = frozenset(("handler", "volumeSource"))
"""Messages whose fields are their holder's in JSON."""


class _Unordinary(Exception):
    """A pod is to be read with care."""


def read_list(content: bytes) -> PodList:
    """Return the list that *content* is, an answer that begins with MAGIC. Raises ApiError."""
    try:
        return PodList.FromString(Envelope.FromString(content[len(MAGIC) :]).raw)
    except DecodeError as error:
        raise ApiError(f"a list of pods is no protobuf message: {error}") from None


def ordinary(pod: Pod, node: str, lean: Lean) -> PodObject | None:
    """Return what is kept of *pod*, None where it is *node*'s or not an ordinary one; what many have
    in common is shared by *lean*.
    """
    if pod.spec.nodeName == node:
        return None
    lean.bound()
    try:
        return _ordinary(pod, lean)
    except (_Unordinary, ValueError):
        return None


def _ordinary(pod: Pod, lean: Lean) -> PodObject:
    metadata = pod.metadata
    spec = pod.spec
    status = pod.status
    labels = {name: metadata.labels[name] for name in metadata.labels}  # dict() takes twice as long
    annotations = {name: metadata.annotations[name] for name in metadata.annotations}
    if not (NAME.fullmatch(metadata.name) and _is_namespace(metadata.namespace) and POD_UID.fullmatch(metadata.uid)):
        raise _Unordinary
    initial = spec.initContainers
    if initial and any(container.restartPolicy for container in initial):
        raise _Unordinary
    running = [(container.name, container.image) for container in spec.containers]
    if is_remarkable(labels, running):
        raise _Unordinary
    return PodObject(
        namespace=intern(metadata.namespace),
        name=metadata.name,
        uid=PodUid(metadata.uid),
        created=_moment(metadata.creationTimestamp.seconds),
        terminating=metadata.HasField("deletionTimestamp"),
        labels=lean.texts(labels),
        annotations=lean.texts(useful(annotations)),
        owners=lean.owners(
            tuple((_text(each.kind), _text(each.name), each.controller) for each in metadata.ownerReferences)
        ),
        node=intern(spec.nodeName),
        service_account=intern(spec.serviceAccountName),
        host_network=spec.hostNetwork,
        containers=lean.containers(tuple(tuple(_ports(each)) for each in spec.containers if each.ports)),
        phase=intern(status.phase or "Pending"),
        addresses=_addresses([each.ip for each in status.podIPs], status.podIP),
        ready=any(_text(each.type) == "Ready" and each.status == "True" for each in status.conditions),
    )


def _text(text: str) -> str:
    if not text:
        raise _Unordinary
    return text


@lru_cache(1024)
def _is_namespace(name: str) -> bool:
    return NAMESPACE.fullmatch(name) is not None


@lru_cache(1024)
def _moment(seconds: int) -> str:
    """Return a time as JSON has it (RFC 3339); empty: there is none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else ""


def _ports(container: Container) -> Iterable[tuple[str, int]]:
    """Yield names and numbers of the TCP ports; who asks for another node's probes?"""
    for each in container.ports:
        if each.protocol in ("", "TCP"):
            if not 0 < each.containerPort < 65536:
                raise _Unordinary
            yield each.name, each.containerPort


def _addresses(several: list[str], one: str) -> tuple[Address, ...]:
    """Return a pod's addresses, each once, as they are written best. Raises ValueError."""
    if not several and one:
        several = [one]
    return tuple(dict.fromkeys(canonical_address(text) for text in several))


def document(message: Message) -> KubeObject:
    """Return *message* as JSON has it, but for what is empty."""
    found: KubeObject = {}
    for field, value in message.ListFields():
        if field.name in _INLINE:
            found |= document(value)
        elif (plain := _plain(value)) is not None:
            found[field.name] = plain
    return found


def _plain(value: object) -> object:
    """Return the value of a field as JSON has it; None: there is none."""
    if isinstance(value, Timestamp):
        return _moment(value.seconds) or None
    if isinstance(value, IntOrString):
        return value.strVal if value.type == 1 else value.intVal
    if isinstance(value, Message):
        return document(value)
    if isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    assert isinstance(value, Iterable)
    return [_plain(each) for each in value]
