"""Giving a pod its sidecar, and taking it away again. Pure, but for the template's file.

Order of containers as in Istio's pkg/kube/inject: webhook.go: reorderPod.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from nodeagent.errors import InjectionError
from nodeagent.inject import annotated, envoy, probes, rbac, selection, shape, status, template, values
from nodeagent.inject.model import PROXY, Document, Injected, InjectionSettings, PodNamespace, Skipped, show
from nodeagent.istio import PORTS, STATUS, USER
from nodeagent.sidecar import probes as sidecar_probes

APP_PROBES: Final = "appProbes"
_MAX_ARGUMENT: Final = 128 << 10
BOOTSTRAP: Final = "bootstrap"
"""The variable that is Envoy's whole configuration: it is made only for a template that refers to it."""


def inject(
    pod: Mapping[str, object],
    namespace: PodNamespace,
    settings: InjectionSettings,
    later: frozenset[str] = frozenset(),
) -> Injected | Skipped:
    """Return *pod* with its sidecar, or why it gets none.

    *pod* is a Pod object or a workload's pod template (metadata, spec); it is not changed. *later*
    are the keys of the labels that its controller will add. A pod that has a sidecar is skipped.
    Raises InjectionError when it cannot be given one, or the template or a value is wrong.
    """
    read = shape.read(pod)
    if skipped := selection.refusal(read, namespace, settings.revision):
        return skipped
    annotated.refuse_unknown(read.annotations)
    chosen = template.load(settings.template)
    known = values.read({**values.images(settings.own_image), **chosen.defaults}, settings.values)
    _refuse_unused(chosen, known, settings.values)
    native = annotated.flag(read.annotations, annotated.NATIVE, settings.native)
    hold, concurrency = annotated.proxy_config(read.annotations)
    known = known if concurrency is None else known.model_copy(update={"concurrency": concurrency})
    injected: Document = copy.deepcopy(dict(pod))
    asked: Document = {}
    before: Document = {}
    if annotated.flag(read.annotations, annotated.REWRITE, known.rewrite_app_http_probe):
        asked, before = probes.rewrite(read, injected["spec"], native)
    if chosen.uses(APP_PROBES) and (fault := sidecar_probes.refusal(asked)):
        raise InjectionError(f"spec: {fault}: allowed: probes that the sidecar can ask for")
    variables = _variables(read, settings, known, asked)
    if chosen.uses(BOOTSTRAP):
        labels = chosen.labels(variables) | read.labels
        selected = rbac.Selected(namespace.name, labels, later)
        rules = rbac.translate(known.authorization_policies, known.root_namespace, selected, known.trust_domain)
        variables[BOOTSTRAP] = json.dumps(envoy.bootstrap(known, asked, rules), separators=(",", ":"))
    added = chosen.fill(variables)
    _refuse_conflicts(read, added)
    _refuse_too_long(chosen.name, added)
    absent = status.absent(injected)
    lists = _add_to_spec(injected["spec"], added, native, settings.hold if hold is None else hold)
    metadata = _add_metadata(injected, added.get("metadata") or {})
    revision = settings.revision or selection.DEFAULT_REVISION
    text = status.Status(**lists, **metadata, revision=revision, probes=before, absent=absent).text()
    injected["metadata"]["annotations"] = {**(injected["metadata"].get("annotations") or {}), STATUS: text}
    return Injected(injected)


def uninject(pod: Mapping[str, object]) -> Document:
    """Return *pod* without what :func:`inject` added, and with its own probes; a pod without a
    sidecar as it is.

    Raises InjectionError when something else injected it: what was there before is not known then.
    """
    read = shape.read(pod)
    found: Document = copy.deepcopy(dict(pod))
    if STATUS not in read.annotations:
        return found
    before = status.read(read.annotations[STATUS])
    spec = found["spec"]
    metadata = found["metadata"]
    for name, added in (
        ("initContainers", before.init_containers),
        ("containers", before.containers),
        ("volumes", before.volumes),
    ):
        spec[name] = [item for item in spec.get(name) or () if item["name"] not in added]
    probes.restore(spec, before.probes)
    for name, added in (("labels", before.labels), ("annotations", (*before.annotations, STATUS))):
        metadata[name] = {key: value for key, value in (metadata.get(name) or {}).items() if key not in added}
    status.forget(found, before)
    return found


def _refuse_unused(chosen: template.Template, known: values.Values, given: Mapping[str, object]) -> None:
    """What is asked of a sidecar whose template does not read it would silently not be done."""
    unused = [
        name
        for name in given
        if name not in values.WITHOUT_TEMPLATE
        and not chosen.uses(name)
        and not (name in envoy.VALUES and chosen.uses(BOOTSTRAP))
    ]
    if not unused:
        return
    held = values.as_variables(known)
    default = values.as_variables(values.read(chosen.defaults, {}))
    for name in unused:
        if held[name] != default[name]:
            raise InjectionError(
                f"values.{name}: {show(held[name])}: allowed: nothing, since the template {show(chosen.name)} does not "
                "use it: what its sidecar does is said elsewhere"
            )


def _variables(pod: shape.PodShape, settings: InjectionSettings, known: values.Values, asked: Document) -> Document:
    """Return what a template may refer to: the values, and what is worked out from the pod."""
    held = values.as_variables(known)
    labels = pod.labels
    name = labels.get("app.kubernetes.io/name") or labels.get("app") or (pod.metadata and pod.metadata.name)
    found: Document = held | annotated.capture(pod.annotations, held)
    found |= {
        "image": pod.annotations.get(annotated.IMAGE, known.image),
        "resources": annotated.resources(pod.annotations, known.resources),
        "canonicalName": labels.get("service.istio.io/canonical-name") or (name or "unknown")[:63].strip("-_."),
        "canonicalRevision": labels.get("service.istio.io/canonical-revision")
        or labels.get("app.kubernetes.io/version")
        or labels.get("version")
        or "latest",
        "defaultContainer": pod.spec.containers[0].name,
        "revision": settings.revision or selection.DEFAULT_REVISION,
        APP_PROBES: envoy.literal(json.dumps(asked)),
    }
    return found


def _refuse_conflicts(pod: shape.PodShape, added: Document) -> None:
    """What Kubernetes would refuse, or what would silently not work."""
    names = [PROXY, *(item["name"] for item in added.get("initContainers") or ())]
    for at, container in pod.containers():
        if container.name in names:
            raise InjectionError(f"{at}.name: {show(container.name)}: allowed: another name: the sidecar has this one")
        for index, port in enumerate(container.ports or ()):
            if port.container_port in PORTS and (port.protocol or "TCP") == "TCP":
                taken = ", ".join(map(str, PORTS))
                raise InjectionError(
                    f"{at}.ports[{index}].containerPort: {port.container_port}: allowed: none of the sidecar's "
                    f"own ({taken})"
                )
    volumes = [item["name"] for item in added.get("volumes") or ()]
    for at, container in pod.containers():
        for index, mount in enumerate(container.volume_mounts or ()):
            if mount.name in volumes:
                raise InjectionError(
                    f"{at}.volumeMounts[{index}].name: {show(mount.name)}: allowed: a volume of the pod: the "
                    "sidecar alone has this one"
                )
    for index, volume in enumerate(pod.spec.volumes or ()):
        if volume.name in volumes:
            raise InjectionError(
                f"spec.volumes[{index}].name: {show(volume.name)}: allowed: another name: a volume of the sidecar "
                "has this one"
            )
    _refuse_uncaptured(pod)


def _refuse_uncaptured(pod: shape.PodShape) -> None:
    """What runs as the sidecar's user or in its group is taken for it; a container's word beats the pod's."""
    whole = pod.spec.security_context or shape.SecurityContextShape()
    for at, container in pod.containers():
        own = container.security_context or shape.SecurityContextShape()
        for field, said, of_the_pod in (
            ("runAsUser", own.run_as_user, whole.run_as_user),
            ("runAsGroup", own.run_as_group, whole.run_as_group),
        ):
            if (of_the_pod if said is None else said) == USER:
                raise InjectionError(
                    f"{'spec' if said is None else at}.securityContext.{field}: {USER}: allowed: another one: what "
                    "runs as the sidecar's own is not captured"
                )


def _refuse_too_long(name: str, added: Document) -> None:
    """What Linux would not execute (MAX_ARG_STRLEN: one argument or variable, with the zero at its end)."""
    for container in (*(added.get("initContainers") or ()), added["container"]):
        for at, word in _words(container):
            size = len(word.replace("$$", "$").encode())
            if size >= _MAX_ARGUMENT:
                raise InjectionError(
                    f"template {name}: {container['name']}.{at}: {size} bytes: allowed: less than {_MAX_ARGUMENT}, "
                    "as Linux takes them: fewer authorizationPolicies, or shorter probes"
                )


def _words(container: Document) -> Iterator[tuple[str, str]]:
    """Yield what *container* is started with, each with where it stands."""
    for field in ("command", "args"):
        for index, word in enumerate(container.get(field) or ()):
            yield f"{field}[{index}]", str(word)
    for variable in container.get("env") or ():
        yield f"env[{variable['name']}]", f"{variable['name']}={variable.get('value', '')}"


def _add_to_spec(spec: Document, added: Document, native: bool, hold: bool) -> dict[str, tuple[str, ...]]:
    """Return the names of what was added, for the status.

    Native: capture, the proxy, then the pod's init containers, which are in the mesh. Else capture
    comes after those, and the proxy last, or first when it is waited for: a container starts when
    the one before it has, its postStart included.
    """
    proxy = _laid_over(added["container"], added.get("whenNative" if native else "whenContainer") or {})
    if hold and not native:
        proxy = _laid_over(proxy, added.get("whenHeld") or {})
    setup = list(added.get("initContainers") or ())
    own = list(spec.get("initContainers") or ())
    init = [*setup, proxy] if native else setup
    if init:
        spec["initContainers"] = [*init, *own] if native else [*own, *init]
    if not native:
        spec["containers"] = [proxy, *spec["containers"]] if hold else [*spec["containers"], proxy]
    if volumes := added.get("volumes") or ():
        spec["volumes"] = [*(spec.get("volumes") or ()), *volumes]
    return {"init_containers": _names(init), "containers": () if native else (PROXY,), "volumes": _names(volumes)}


def _laid_over(below: Document, above: Document) -> Document:
    """Return *below* with what *above* says instead or beside, in mappings at whatever depth."""
    return below | {
        key: _laid_over(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }


def _names(items: Iterable[Document]) -> tuple[str, ...]:
    return tuple(item["name"] for item in items)


def _add_metadata(pod: Document, added: Document) -> dict[str, tuple[str, ...]]:
    """Return the keys that were added, for the status; the pod's own labels and annotations win over the template's."""
    metadata = pod["metadata"] = pod.get("metadata") or {}
    keys = {}
    for field in ("labels", "annotations"):
        held = metadata.get(field) or {}
        extra = {key: str(value) for key, value in (added.get(field) or {}).items() if key not in held}
        if extra:
            metadata[field] = held | extra
        keys[field] = tuple(extra)
    return keys
