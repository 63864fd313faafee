"""What is kept of the cluster's objects: little, and what many have in common only once.

Of a pod on another node nobody here asks for its probes, volumes or most annotations; and the pods
of one ReplicaSet have their labels, annotations and ports in common.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from sys import intern
from typing import Final, TypeVar, cast, get_args

from nodeagent.istio import AMBIENT_REDIRECTION, INJECT, STATUS
from nodeagent.kube.access import KubeObject
from nodeagent.mesh.local import BYPASS, EXCLUDE_INBOUND, EXCLUDE_OUTBOUND, PATH, WORKLOAD_API
from nodeagent.mesh.membership import DATAPLANE, ENROLL
from nodeagent.mesh.rules import SCRAPE, SCRAPE_PATH, SCRAPE_PORT, SCRAPE_SCHEME
from nodeagent.resources.objects import ContainerObject, NamedPort, NamespaceObject, Owner, PodObject, ServiceObject
from nodeagent.resources.part import Field
from nodeagent.resources.proxies import IstioPart, OwnProxy

MIRROR: Final = "kubernetes.io/config.mirror"
"""Annotation of a static pod's mirror: the uid by which the kubelet and the runtime know the pod."""
_KEPT: Final = frozenset(
    (
        *(PATH, BYPASS, WORKLOAD_API, EXCLUDE_INBOUND, EXCLUDE_OUTBOUND, DATAPLANE, ENROLL),
        *(STATUS, INJECT, AMBIENT_REDIRECTION, MIRROR),
        *(SCRAPE, SCRAPE_PORT, SCRAPE_PATH, SCRAPE_SCHEME),
    )
)
"""Annotations that somebody reads, of a pod of another node, a Service or a Namespace."""
MAX_VALUE: Final = 4096
"""Characters of one that are kept: nothing that long is right, but that it is there may matter."""
MAX_TEXTS: Final = 64
"""Of an object's labels that are kept as a dict, which takes many times as much as they have bytes."""
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""The whole object once more, as text."""
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle")
MAX_SHARED: Final = 1 << 14
UNWRITTEN: Final = "unwritten"
"""Field of a kept document, which no object of the API has."""
_Shared = TypeVar("_Shared", bound=Hashable)
_Annotated = TypeVar("_Annotated", ServiceObject, NamespaceObject)


class PackedTexts(Mapping[str, str]):
    """Very many texts by name, in twice as much memory as they have bytes. No name has a NUL: Kubernetes
    checks labels' names.
    """

    __slots__ = ("_lines",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._lines = tuple(sorted(f"{name}\0{value}" for name, value in texts.items()))

    def __getitem__(self, name: str) -> str:
        begin = f"{name}\0"
        at = bisect_left(self._lines, begin)
        if at == len(self._lines) or not self._lines[at].startswith(begin):
            raise KeyError(name)
        return self._lines[at].removeprefix(begin)

    def __iter__(self) -> Iterator[str]:
        return (line.partition("\0")[0] for line in self._lines)

    def __len__(self) -> int:
        return len(self._lines)


class Lean:
    """Makes objects small."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, object] = {}
        self._containers: dict[tuple[tuple[tuple[str, int], ...], ...], tuple[ContainerObject, ...]] = {}
        self._owners: dict[tuple[tuple[str, str, bool], ...], tuple[Owner, ...]] = {}
        self._texts: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        """Apart from the others: no texts and no owners are both the empty tuple here."""

    def pod(self, pod: PodObject, *, full: bool) -> PodObject:
        """Return *pod* with what it has in common with others shared; *full*: all of it."""
        self.bound()
        annotations = {name: value for name, value in pod.annotations.items() if name != _LAST_APPLIED}
        containers = pod.containers
        if not full:
            annotations = useful(annotations)
            containers = tuple(ContainerObject(each.ports, ()) for each in containers if each.ports)
        return PodObject(  # not by dataclasses.replace, which takes four times as long: a cluster has thousands
            namespace=intern(pod.namespace),
            name=pod.name,
            uid=pod.uid,
            created=pod.created,
            terminating=pod.terminating,
            labels=self.texts(pod.labels),
            annotations=self.texts(annotations),
            owners=self._same(pod.owners),
            node=intern(pod.node),
            service_account=intern(pod.service_account),
            host_network=pod.host_network,
            containers=self._same(containers),
            phase=intern(pod.phase),
            addresses=pod.addresses,
            ready=pod.ready,
            drivers=pod.drivers if full else (),
            proxy=pod.proxy,
            istio_part=pod.istio_part,
        )

    def annotated(self, item: _Annotated) -> _Annotated:
        """Return *item* with those of its annotations that are of use."""
        return replace(item, annotations=self.texts(useful(item.annotations)))

    def texts(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        """Return the mapping that is equal to *texts*, the same for all."""
        if len(texts) > MAX_TEXTS:
            return PackedTexts(texts)
        key = tuple(sorted(texts.items()))
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = {intern(name): intern(value) for name, value in key}
        return found

    def containers(self, ports: tuple[tuple[tuple[str, int], ...], ...]) -> tuple[ContainerObject, ...]:
        """Return containers with *ports*, names and numbers, the same for all."""
        found = self._containers.get(ports)
        if found is None:
            made = tuple(ContainerObject(tuple(NamedPort(*port) for port in each), ()) for each in ports if each)
            found = self._containers[ports] = self._same(made)
        return found

    def owners(self, owners: tuple[tuple[str, str, bool], ...]) -> tuple[Owner, ...]:
        """Return who *owners* are (kind, name, whether it is the controller), the same for all."""
        found = self._owners.get(owners)
        if found is None:
            found = self._owners[owners] = self._same(tuple(Owner(*each) for each in owners))
        return found

    def bound(self) -> None:
        """Forget what is shared when it is too much: most is of pods that are gone; who has it keeps it."""
        for shared in (self._shared, self._texts, self._containers, self._owners):
            if len(shared) > MAX_SHARED:
                shared.clear()

    def _same(self, value: _Shared) -> _Shared:
        return cast(_Shared, self._shared.setdefault(value, value))


def trim(document: KubeObject) -> None:
    """Take out of *document*, a pod's, what is not read of a pod on another node: reading is most of
    what a large cluster costs.
    """
    spec = document.get("spec")
    status = document.get("status")
    if isinstance(spec, dict):
        spec.pop("volumes", None)
        containers = spec.get("containers")
        for container in containers if isinstance(containers, list) else ():
            for name in _PROBES if isinstance(container, dict) else ():
                container.pop(name, None)
    conditions = status.get("conditions") if isinstance(status, dict) else None
    if isinstance(status, dict) and isinstance(conditions, list):
        status["conditions"] = [
            each for each in conditions if not isinstance(each, dict) or each.get("type") == "Ready"
        ]


def useful(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return those of *annotations* that somebody reads."""
    return {name: annotations[name][:MAX_VALUE] for name in annotations.keys() & _KEPT}


def unwritten(pod: PodObject) -> KubeObject:
    """Return what is read of a pod's containers and cannot be told from what *pod* keeps of them."""
    found: KubeObject = {"istioPart": pod.istio_part} if pod.istio_part else {}
    if pod.proxy is not None:
        found["proxy"] = {"words": pod.proxy.words, "certain": pod.proxy.certain}
    return found


def rewritten(pod: PodObject, said: object) -> PodObject:
    """Return *pod* with what :func:`unwritten` *said* of it. Raises ResourceError."""
    root = Field(UNWRITTEN, said)
    part = root.text("istioPart", "")
    if part not in get_args(IstioPart):
        raise root.wrong("istioPart", f"allowed: {', '.join(get_args(IstioPart))}")
    proxy = None
    if root.has("proxy"):
        words = root.part("proxy")
        proxy = OwnProxy(words.text("words"), words.flag("certain"))
    return replace(pod, proxy=proxy, istio_part=cast(IstioPart, part))
