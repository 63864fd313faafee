"""What the rules of this project's sources are checked with: the syntax trees of a package's
modules, and what is found in them.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NewType

ModuleName = NewType("ModuleName", str)
"""A module's dotted name, as in ``nodeagent.proxy.pool``."""
Graph = Mapping[ModuleName, frozenset[ModuleName]]
"""The modules that each module imports."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Module:
    """One source file: *path* is relative to the root of the repository."""

    name: ModuleName
    path: Path
    text: str

    def at(self, node: ast.expr | ast.stmt) -> str:
        """Return *node*'s place as editors and terminals follow it, ``path:line``."""
        return f"{self.path}:{node.lineno}"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the tree."""
        return tuple(ast.walk(self.tree))


def modules(package: Path) -> tuple[Module, ...]:
    """Return the modules of the *package* (a folder), but those that protoc wrote."""
    return tuple(module(path, package.parent) for path in sorted(package.rglob("*.py")) if not written(path))


def written(path: Path) -> bool:
    """Say whether a program wrote the module at *path*."""
    return path.name.endswith("_pb2.py")


def module(path: Path, root: Path) -> Module:
    """Return the module at *path*; its name is told from where it is below *root*."""
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    named = parts[:-1] if parts[-1] == "__init__" else parts
    return Module(ModuleName(".".join(named)), relative, path.read_text())


# -- one thought a line --


def nested_ternaries(found: Module) -> Iterator[str]:
    """Yield the places of a conditional expression inside another one."""
    for outer in found.nodes:
        if isinstance(outer, ast.IfExp) and any(isinstance(inner, ast.IfExp) for inner in below(outer)):
            yield found.at(outer)


def below(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes under *node*."""
    for child in ast.iter_child_nodes(node):
        yield from ast.walk(child)


def nested_comprehensions(found: Module) -> Iterator[str]:
    """Yield the places of comprehensions with two ``for``."""
    for node in found.nodes:
        if isinstance(node, COMPREHENSIONS) and len(node.generators) > 1:
            yield found.at(node)


def tuple_assignments(found: Module) -> Iterator[str]:
    """Yield the places where several values go to several names in one statement, for no reason: a
    swap, or a value that needs what another name held before, is a reason.
    """
    for node in found.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        for target in node.targets:
            if isinstance(target, ast.Tuple) and not needs_what_was(target, node.value):
                yield found.at(node)


def needs_what_was(targets: ast.Tuple, values: ast.Tuple) -> bool:
    """Say whether a value of the assignment reads what another target of it held before."""
    named = [ast.unparse(target) for target in targets.elts]
    for position, value in enumerate(values.elts):
        others = {name for place, name in enumerate(named) if place != position}
        if any(ast.unparse(part) in others for part in ast.walk(value) if isinstance(part, ast.expr)):
            return True
    return False


def counted_booleans(found: Module) -> Iterator[str]:
    """Yield the places where the result of a comparison is added, multiplied or used as an index."""
    for node in found.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            if truth(node.left) or truth(node.right):
                yield found.at(node)
        elif isinstance(node, ast.Subscript) and truth(node.slice):
            yield found.at(node)


def truth(node: ast.expr) -> bool:
    """Say whether *node* is a comparison or a negation."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare)


# -- size, types and names --


def long_functions(found: Module, lines: int) -> Iterator[str]:
    """Yield the functions of more than *lines* lines, from ``def`` to the last one."""
    for node in found.nodes:
        if isinstance(node, FUNCTIONS) and node.end_lineno is not None:
            size = node.end_lineno - node.lineno + 1
            if size > lines:
                yield f"{found.at(node)} {node.name}: {size} lines"


def anys(found: Module) -> Iterator[str]:
    """Yield the lines where a type is ``Any``."""
    yield from sorted({found.at(node) for node in found.nodes if isinstance(node, ast.Name) and node.id == "Any"})


def shared_names(found: Iterable[Module]) -> dict[str, list[str]]:
    """Return the names of classes that several modules define, with the places of each; a class
    inside another thing, or with a leading underscore, is its module's own business.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for each in found:
        for node in each.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(each.at(node))
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


# -- imports --


@dataclass(frozen=True, slots=True)
class Import:
    """One import: *lazy*: inside a function; *types*: under ``if TYPE_CHECKING``."""

    importer: ModuleName
    imported: ModuleName
    place: str
    lazy: bool = False
    types: bool = False

    def __str__(self) -> str:
        ways = [way for way, taken in (("lazily", self.lazy), ("for types", self.types)) if taken]
        return " ".join([f"{self.place}: {self.imported}", *ways])


def imports(found: Iterable[Module]) -> tuple[Import, ...]:
    """Return the imports of these modules of each other."""
    all_of_them = tuple(found)
    known = frozenset(each.name for each in all_of_them)
    return tuple(each for importer in all_of_them for each in _imports(importer, importer.tree, known))


def _imports(importer: Module, node: ast.AST, known: frozenset[ModuleName], **how: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = dict(how)
        if isinstance(child, FUNCTIONS):
            inside["lazy"] = True
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside["types"] = True
        if isinstance(child, ast.Import | ast.ImportFrom):
            for name in sorted(_named(child, known) - {importer.name}):
                yield Import(importer.name, name, importer.at(child), **how)
        else:
            yield from _imports(importer, child, known, **inside)


def _named(node: ast.Import | ast.ImportFrom, known: frozenset[ModuleName]) -> set[ModuleName]:
    """Return the modules that the statement is of: ``from a import b`` is of ``a.b`` where that is a
    module, else of ``a``. That an import of ``a.b`` runs the package ``a`` first is no import of it.
    """
    if isinstance(node, ast.Import):
        return {ModuleName(alias.name) for alias in node.names} & known
    package = ModuleName(node.module or "")
    wanted = {ModuleName(f"{package}.{alias.name}") for alias in node.names}
    return {name if name in known else package for name in wanted} & known


def graph(found: Iterable[Import]) -> Graph:
    """Return who imports whom."""
    edges: dict[ModuleName, set[ModuleName]] = defaultdict(set)
    for each in found:
        edges[each.importer].add(each.imported)
    return {name: frozenset(imported) for name, imported in edges.items()}


def circles(edges: Graph) -> list[list[ModuleName]]:
    """Return the groups of modules each of which imports, by whatever way, each other of its group:
    the strongly connected components of more than one, smallest first.
    """
    reach = {name: _reached(edges, name) for name in edges}
    groups: set[tuple[ModuleName, ...]] = set()
    for name, reached in reach.items():
        if name in reached:
            groups.add(tuple(sorted(other for other in reached if name in reach.get(other, ()))))
    return sorted((list(group) for group in groups), key=len)


def _reached(edges: Graph, start: ModuleName) -> frozenset[ModuleName]:
    """Return what *start* imports, by whatever way."""
    found: set[ModuleName] = set()
    waiting = list(edges.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += edges.get(name, ())
    return frozenset(found)


# -- tests --


def unexplained_sleeps(found: Module) -> Iterator[str]:
    """Yield the places where a test sleeps for a time, and no comment on the line says what for; a
    sleep of 0, or between two looks at a state, waits for no time.
    """
    lines = found.text.splitlines()
    for node in found.nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "sleep" and node.args:
            waits = ast.unparse(node.args[0])
            if waits not in ("0", "LOOK_SECONDS") and "#" not in lines[(node.end_lineno or node.lineno) - 1]:
                yield found.at(node)


def most(found: Iterable[str]) -> str:
    """Return in which files most of these places are, for messages."""
    files = Counter(place.partition(":")[0] for place in found)
    return ", ".join(f"{file} {count} ×" for file, count in files.most_common(8))
