"""A container's environment and command line, as Kubernetes composes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from nodeagent.errors import LabError
from nodeagent.lab.layout import Object
from nodeagent.lab.programs import PATH
from nodeagent.resources.pod import Container, EnvSource

ConfigMaps = Callable[[str], Mapping[str, str] | None]
"""Name -> data of that ConfigMap in the pod's namespace, ``None`` if there is none."""

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; ``$$(NAME)`` escapes, an unknown name stays as it is (Kubernetes' rule)."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def environment(container: Container, pod: Object, config_maps: ConfigMaps) -> dict[str, str]:
    """Return the environment of *container* in *pod* (its object, with addresses); raises LabError
    for a ConfigMap or key that is missing.
    """
    found = {"PATH": PATH, "HOME": "/root", "HOSTNAME": pod["spec"].get("hostname", pod["metadata"]["name"])}
    for source in container.env_from:
        data = config_maps(source.config_map_ref.name)
        if data is None and not source.config_map_ref.optional:
            raise LabError(
                f"container {container.name}: envFrom: ConfigMap {source.config_map_ref.name} does not exist"
            )
        found |= {source.prefix + key: value for key, value in (data or {}).items()}
    for variable in container.env:
        value = _from(variable.value_from, pod, config_maps) if variable.value_from else expand(variable.value, found)
        if value is not None:
            found[variable.name] = value
    return found


def command(container: Container, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command line of *container*."""
    return tuple(expand(word, environment) for word in (*container.command, *container.args))


def _from(source: EnvSource, pod: Object, config_maps: ConfigMaps) -> str | None:
    if source.field_ref:
        return _field(source.field_ref.field_path, pod)
    reference = source.config_map_key_ref
    assert reference is not None, "EnvSource holds exactly one source"
    value = (config_maps(reference.name) or {}).get(reference.key)
    if value is None and not reference.optional:
        raise LabError(f"env: ConfigMap {reference.name} has no key {reference.key}")
    return value


def _field(path: str, pod: Object) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    section, _, name = path.partition(".")
    if name in ("podIPs", "hostIPs"):
        return ",".join(each["ip"] for each in pod["status"][name])
    return str(pod[section].get(name, "default" if name == "serviceAccountName" else ""))
