"""A template: what is added to a pod, as YAML that a user can replace.

A file ``sidecar.yaml`` with these keys: ``values`` (defaults, and names of the template's own),
``metadata`` (labels and annotations for the pod), ``initContainers``, ``container`` (the proxy),
``whenContainer`` or ``whenNative``, then ``whenHeld`` (laid over the proxy), ``volumes``. In texts,
``${name}`` stands for a value: a text that is nothing else becomes the value itself, of any kind
(text in a command); a key or item whose value is null goes away; ``$${`` is a literal ``${``. The
YAML is read before anything is filled in, so no value can change its structure. Kubernetes expands
``$(NAME)`` itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from nodeagent.errors import InjectionError, ResourceError
from nodeagent.inject.model import PROXY, Document, show
from nodeagent.resources import yaml_text

FILE: Final = "sidecar.yaml"
_BUILTIN: Final = Path(__file__).parent / "templates"
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_COMMANDS: Final = ("command", "args")
_KINDS: Final[dict[str, type]] = {
    "values": dict,
    "metadata": dict,
    "initContainers": list,
    "container": dict,
    "whenContainer": dict,
    "whenNative": dict,
    "whenHeld": dict,
    "volumes": list,
}


@dataclass(frozen=True, slots=True)
class Template:
    """A template's file, read and checked; treat what it holds as frozen."""

    name: str
    content: Document

    @property
    def defaults(self) -> Mapping[str, object]:
        """The values that the template itself sets, by name."""
        found: Mapping[str, object] = self.content.get("values") or {}
        return found

    def uses(self, name: str) -> bool:
        """Say whether ``${name}`` stands anywhere in what the template adds."""
        return any(name in _references(text) for text in _texts(self.content))

    def labels(self, variables: Mapping[str, object]) -> dict[str, str]:
        """Return the labels that the template adds, filled with *variables*. Raises InjectionError as :meth:`fill`."""
        given = (self.content.get("metadata") or {}).get("labels") or {}
        filled = _fill_mapping(given, variables, f"template {self.name}: metadata.labels")
        return {key: str(value) for key, value in filled.items()}

    def fill(self, variables: Mapping[str, object]) -> Document:
        """Return what the template adds to a pod, with every ``${name}`` replaced by what
        *variables* holds for it. Raises InjectionError for a name that is not there.
        """
        content = {key: value for key, value in self.content.items() if key != "values"}
        return _fill_mapping(content, variables, f"template {self.name}: ")


def builtins() -> list[str]:
    """Return the names of the templates that come with nodeagent."""
    return sorted(folder.name for folder in _BUILTIN.iterdir() if (folder / FILE).is_file())


def load(name: str) -> Template:
    """Return the builtin template *name*, or the one at that path (a file, or a folder with FILE).
    Raises InjectionError.
    """
    names = builtins()
    path = _BUILTIN / name / FILE if name in names else Path(name)
    try:
        path = path / FILE if path.is_dir() else path
        return _read(name, path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InjectionError(
            f"template {show(name)}: {error.strerror}: allowed: {', '.join(names)}, or a path of a file or of a "
            f"folder with {FILE}"
        ) from None


@lru_cache(maxsize=16)
def _read(name: str, path: Path, changed: int) -> Template:
    """*changed* makes a file that was replaced be read again."""
    where = f"template {name}: "
    try:
        documents = yaml_text.load(path.read_text())
    except (ResourceError, UnicodeDecodeError) as error:
        raise InjectionError(f"{where}{error}") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InjectionError(f"{where}allowed: one document, a mapping of {', '.join(_KINDS)}")
    content: Document = documents[0]
    for key, value in content.items():
        if key not in _KINDS:
            raise InjectionError(f"{where}{key:.80}: unknown field: allowed: {', '.join(_KINDS)}")
        if value is not None and not isinstance(value, _KINDS[key]):
            raise InjectionError(
                f"{where}{key}: {show(value)}: allowed: a {'mapping' if _KINDS[key] is dict else 'list'}"
            )
    _check_names(where, content)
    return Template(name, content)


def _check_names(where: str, content: Document) -> None:
    if (content.get("container") or {}).get("name") != PROXY:
        raise InjectionError(
            f"{where}container.name: {show((content.get('container') or {}).get('name'))}: allowed: {PROXY}"
        )
    for key in ("initContainers", "volumes"):
        seen: set[str] = {PROXY}
        for index, item in enumerate(content.get(key) or ()):
            name = item.get("name") if isinstance(item, dict) else item
            if not isinstance(item, dict) or not isinstance(name, str) or not name or name in seen or "${" in name:
                raise InjectionError(
                    f"{where}{key}[{index}].name: {show(name)}: allowed: a name of its own, without ${{…}}"
                )
            seen.add(name)
    for key in ("labels", "annotations"):
        if not isinstance((content.get("metadata") or {}).get(key) or {}, dict):
            raise InjectionError(f"{where}metadata.{key}: allowed: a mapping")


def _texts(value: object) -> Iterator[str]:
    """Yield every text in *value*, at whatever depth; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


def _references(text: str) -> set[str | None]:
    """Return the names that stand in *text* as ``${name}``."""
    return {match[1] for match in _REFERENCE.finditer(text)}


def _fill_mapping(value: Document, variables: Mapping[str, object], at: str) -> Document:
    filled: Document = {}
    for key, child in value.items():
        made = _fill(child, variables, f"{at}{'' if at.endswith(' ') else '.'}{key}")
        if key in _COMMANDS and isinstance(made, list):
            made = _words(made)
        if made is not None or child is None:
            filled[key] = made
    return filled


def _fill(value: object, variables: Mapping[str, object], at: str) -> object:
    if isinstance(value, str):
        return _fill_text(value, variables, at)
    if isinstance(value, dict):
        return _fill_mapping(value, variables, at)
    if isinstance(value, list):
        items = [_fill(child, variables, f"{at}[{index}]") for index, child in enumerate(value)]
        return [item for item in items if item is not None]
    return value


def _words(items: list[object]) -> list[object]:
    """A command's words are texts, whatever stands for them."""
    return [str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item for item in items]


def _fill_text(text: str, variables: Mapping[str, object], at: str) -> object:
    def value_of(match: re.Match[str]) -> object:
        if match[1] is None:
            return "${"
        if match[1] not in variables:
            raise InjectionError(f"{at}: {show(match[0])}: unknown: allowed: {', '.join(sorted(variables))}")
        return variables[match[1]]

    if (whole := _REFERENCE.fullmatch(text)) and whole[1] is not None:
        return value_of(whole)

    def as_text(match: re.Match[str]) -> str:
        found = value_of(match)
        if isinstance(found, dict | list):
            raise InjectionError(
                f"{at}: {show(match[0])}: a {type(found).__name__} cannot be part of a text: it must stand alone"
            )
        if found is None:
            return ""
        return str(found).lower() if isinstance(found, bool) else str(found)

    return _REFERENCE.sub(as_text, text)
