"""The documents agree with the code: their links and the files that they name exist, their tables are
those of the sources, and ``docs/agent.yaml`` is the daemon's whole configuration.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from nodeagent import config
from nodeagent.cli.main import COMMANDS
from nodeagent.config import AgentConfig
from nodeagent.logs.settings import LogSettings
from tests import documents
from tests.documents import ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bpf/**/*.md", "nodeagent/**/*.md", "daemonset/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
PROSE_COLUMNS = 100
CODE_COLUMNS = 140
README_LINES = 90
SUFFIXES = ("py", "c", "h", "md", "yaml", "yml", "toml", "proto", "sh", "txt", "json", "html")
ONE_OF = frozenset({"identity.caDirectory", "source"})
"""Keys without a value of their own, of which one must be given with others: the example gives these."""
MADE_ELSEWHERE = frozenset(
    {"app.yaml", "FILE.yaml", "pods.yaml", "top.txt", "results.json", "bench.json", "ca.yaml", "webhook.yaml"}
)
"""Names of files that a reader makes, or that a command writes."""


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines outside of fences and tables."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|"):
            yield number, line


def fenced(text: str) -> Iterator[str]:
    """Yield the lines inside of fences."""
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            yield line


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = (line.lstrip("#").strip().lower() for _, line in prose(path.read_text()) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_prose_has_100_columns_at_most(name: str) -> None:
    text = (ROOT / name).read_text()
    assert [number for number, line in prose(text) if len(line) > PROSE_COLUMNS] == []
    assert [line for line in fenced(text) if len(line) > CODE_COLUMNS] == []


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readme_has_room_for_a_whole_run() -> None:
    text = (ROOT / "README.md").read_text()
    lines = len(documents.with_table(text, "figures", "").splitlines())
    assert lines + len(documents.ROWS) + 12 <= README_LINES  # where it was measured, the table's head, idle pods


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    dead = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_files_that_are_named_exist(name: str) -> None:
    """A file is named from the project's root, from ``nodeagent/`` or ``bpf/``, or from the folder of
    the document; a name without a folder may be any file's of the project.
    """
    text = (ROOT / name).read_text()
    pattern = rf"`([\w./-]+\.(?:{'|'.join(SUFFIXES)}))(?:: [\w.]+)?`"
    result = str(documents.RESULTS.relative_to(ROOT))
    named = {file for file in re.findall(pattern, text) if not file.startswith(("/", "build/")) and file != result}
    places = (ROOT, ROOT / "nodeagent", ROOT / "bpf", (ROOT / name).parent, ROOT / "nodeagent" / "proxy")
    folders = [ROOT / folder for folder in ("nodeagent", "bpf", "tests", "docs", "daemonset")]
    known: set[str] = set()
    for folder in folders:
        known |= {path.name for path in folder.rglob("*")}
    wrong = {
        file
        for file in named
        if not any((place / file).exists() for place in places) and ("/" in file or file not in known | MADE_ELSEWHERE)
    }
    assert wrong == set()


PACKAGES = sorted(path for path in (ROOT / "nodeagent").rglob("__init__.py") if path.read_text().startswith('"""'))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_a_package_names_modules_that_exist(path: Path) -> None:
    """Its docstring names a module from its own folder, from ``nodeagent/`` or from the project's root."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    named = re.findall(rf"``([\w./-]+\.(?:{'|'.join(SUFFIXES)}))(?:: \w+)?``", text)
    places = (path.parent, ROOT / "nodeagent", ROOT)
    assert [file for file in named if not any((place / file).exists() for place in places)] == []


def test_every_package_says_what_it_is_for() -> None:
    packages = set((ROOT / "nodeagent").rglob("__init__.py"))
    silent = packages - set(PACKAGES)
    assert {str(path.parent.relative_to(ROOT)) for path in silent} == set()


def test_the_architecture_names_every_package_and_module_at_the_top() -> None:
    text = (ROOT / "nodeagent" / "ARCHITECTURE.md").read_text()
    top = {f"{path.parent.name}/" for path in (ROOT / "nodeagent").glob("*/__init__.py")}
    top |= {path.name for path in (ROOT / "nodeagent").glob("*.py") if not path.name.startswith("__")}
    assert {name for name in top if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_are_shown_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    shown = [*fenced(text), *re.findall(r"`([^`\n]+)`", text)]
    commands = {found for line in shown for found in re.findall(r"(?:^|[;|] ?)nodeagent ([a-z][a-z-]*)", line)}
    targets = {found for line in shown for found in re.findall(r"^make ([a-z-]+)", line)}
    assert commands <= set(COMMANDS)
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_settings_that_are_named_exist(name: str) -> None:
    sections = {part for part in keys(AgentConfig) if "." not in part}
    named = re.findall(r"`([a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)+)`", (ROOT / name).read_text())
    assert {key for key in named if key.partition(".")[0] in sections} <= keys(AgentConfig) | {"identity.py"}


@pytest.mark.parametrize(("document", "name", "make"), documents.TABLES)
def test_tables_are_those_of_the_sources(document: str, name: str, make: Any) -> None:
    text = (ROOT / document).read_text()
    assert documents.between(text, name) == documents.written(make), "run `make documents`"


def test_the_figures_are_those_of_the_kept_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(mode: str, workload: str, rounds: list[float], p50: list[float]) -> dict[str, Any]:
        latency = {"p50": p50}
        return {
            "mode": mode, "variant": "", "workload": workload, "load": "closed", "connections": 1,
            "rounds": rounds, "latency_rounds_us": latency,
        }  # fmt: skip

    environment = {
        "date": "2026-11-29T09:15:00+00:00", "cpu": "a processor", "cores": 2, "kernel": "6.18", "python": "3.11",
        "compiled": True, "envoy": "1.30", "rounds": 3,
    }  # fmt: skip
    scale = [
        {"mode": mode, "pods": 100, "memory_bytes": size << 20} for mode, size in (("nodeagent", 70), ("envoy", 1400))
    ]
    runs = [
        run("direct", "http", [1, 1, 1], [100, 100, 100]),
        run("nodeagent", "http", [1, 1, 1], [150, 160, 170]),
        run("envoy", "http", [1, 1, 1], [1000, 1000, 10]),
        run("nodeagent", "cross-node", [1, 1, 1], [300, 300, 300]),
    ]
    kept = tmp_path / "bench.json"
    kept.write_text(json.dumps({"environment": environment, "runs": runs, "scale": scale}))
    monkeypatch.setattr(documents, "RESULTS", kept)
    told = list(documents.figures())
    assert "| one node: a request at a time, p50 | 0.16 × | 1.60 × | Envoy's pair |" in told
    assert not [line for line in told if line.startswith("| between nodes")]  # nothing to compare with
    assert told[-1] == "| 100 idle pods: memory of all proxies | 0.050 × (70 MB for 1,400 MB) | | |"
    assert "2026-11-29: a processor, 2 cores, Linux 6.18," in " ".join(told)
    assert max(len(line) for line in told if not line.startswith("|")) <= PROSE_COLUMNS


def test_every_map_is_in_the_kernels_table() -> None:
    text = (ROOT / "bpf" / "README.md").read_text()
    declared: set[str] = set()
    for header in (ROOT / "bpf").glob("*.[ch]"):
        declared |= set(re.findall(r"^PINNED\(.*, (\w+)\);", header.read_text(), re.MULTILINE))
    assert len(declared) > 20
    assert {name for name in declared if f"`{name}`" not in text} == set()


# -- docs/agent.yaml --


def settings() -> Any:
    """Return ``docs/agent.yaml`` with every setting that is off switched on."""
    lines = (ROOT / "docs" / "agent.yaml").read_text().splitlines()
    return yaml.safe_load("\n".join(re.sub(r"^(\s*)#(?=[A-Za-z-])", r"\1", line) for line in lines))


def alias(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].alias or name


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type is, may be, or is a sequence of."""
    if annotation == AgentConfig.model_fields["logs"].annotation:
        return LogSettings  # imported where it is given alone
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType, tuple):
        found = [section for each in typing.get_args(annotation) if (section := section_of(each))]
        return found[0] if found else None
    return None


def keys(model: type[BaseModel], before: str = "") -> set[str]:
    """Return every key of *model*, those of its sections with dots."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        key = f"{before}{alias(model, name)}"
        found.add(key)
        if section := section_of(field.annotation):
            found |= keys(section, f"{key}.")
    return found


def wrong(model: type[BaseModel], given: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield what keys of *model* are missing in *given*, what is not its default, and what is no key."""
    known = {alias(model, name) for name in model.model_fields}
    yield from (f"{before}{key}: no such key" for key in given if key not in known)
    for name, field in model.model_fields.items():
        key = alias(model, name)
        if key not in given:
            yield f"{before}{key}: is missing"
        elif section := section_of(field.annotation):
            value = given[key]
            whole = (
                {item: found for each in value for item, found in each.items()} if isinstance(value, list) else value
            )
            yield from wrong(section, whole, f"{before}{key}.")
        elif not field.is_required() and field.default_factory is None and f"{before}{key}" not in ONE_OF:
            told = TypeAdapter(field.annotation).validate_python(given[key])
            if told != field.default:
                yield f"{before}{key}: {told!r} is told, the default is {field.default!r}"


def test_the_example_loads_and_is_the_defaults() -> None:
    loaded = config.load(ROOT / "docs" / "agent.yaml")
    least = {
        "node": loaded.node,
        "source": loaded.source,
        "redirect": {"cgroup": loaded.redirect.cgroup},
        "identity": {"caDirectory": loaded.identity.ca_directory},
    }
    assert loaded == AgentConfig.model_validate(least)


def test_the_example_has_every_key_with_its_default() -> None:
    assert list(wrong(AgentConfig, settings())) == []


def test_a_default_that_is_told_wrong_is_found() -> None:
    given = settings()
    given["proxy"]["limits"]["headerCount"] = 99
    del given["redirect"]["maps"]["pods"]
    given["mtls"]["strict"] = True
    assert set(wrong(AgentConfig, given)) == {
        "proxy.limits.headerCount: 99 is told, the default is 100",
        "redirect.maps.pods: is missing",
        "mtls.strict: no such key",
    }


def test_the_licence_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
