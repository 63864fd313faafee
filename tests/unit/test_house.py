"""The house rules that no formatter keeps: one thought a line, one name for one thing, no circle.

What still breaks a rule is bounded by a number: it may go down, never up. Who brings a number down
lowers it here; nobody raises one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit import house
from tests.unit.house import Module, ModuleName

ROOT = Path(__file__).parents[2]
LONGEST = 60
"""Lines of a function at most."""
RULES: dict[str, tuple[Callable[[Module], Iterator[str]], int, str]] = {
    "nested ternaries": (
        house.nested_ternaries,
        0,
        "Give the inner choice a name, or return from a function with `if`s, one case a line.",
    ),
    "comprehensions with two `for`s": (
        house.nested_comprehensions,
        0,
        "Write a named generator with two loops, or a loop.",
    ),
    "tuple assignments": (
        house.tuple_assignments,
        7,
        "Write one assignment a line; only a swap needs both at once.",
    ),
    "booleans that are counted with": (
        house.counted_booleans,
        2,
        "Write an `if` or a conditional expression that says what both cases give.",
    ),
    "lines with Any": (
        house.anys,
        60,
        "Name the type: a dataclass, a TypedDict, a Protocol, a type variable, or `object` where nothing is read.",
    ),
    "functions that are too long": (
        lambda found: house.long_functions(found, LONGEST),
        1,
        f"Cut it where one step ends and the next begins; {LONGEST} lines at most.",
    ),
}
"""What is looked for, how often it may still be found, and what to write instead."""
SHARED_NAMES = 0
"""Names of classes that several modules may still define."""
ALLOWED_CIRCLES = [["nodeagent.identity.istio_ca", "nodeagent.identity.sources"]]
"""An import for types, or a lazy one, may close these: sources imports istio_ca, which brings grpc and its
megabytes, only where it is configured.
"""


@pytest.fixture(scope="module")
def sources() -> tuple[Module, ...]:
    return house.modules(ROOT / "nodeagent")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_broken_no_more_often_than_it_was(sources: tuple[Module, ...], rule: str) -> None:
    look, bound, advice = RULES[rule]
    found = [place for each in sources for place in look(each)]
    places = "\n  ".join(sorted(found))
    assert len(found) <= bound, f"{len(found)} {rule}, at most {bound}. {advice}\nMost: {house.most(found)}\n  {places}"


def test_a_class_name_stands_for_one_thing(sources: tuple[Module, ...]) -> None:
    shared = house.shared_names(sources)
    listed = "\n  ".join(f"{name}: {', '.join(places)}" for name, places in shared.items())
    assert len(shared) <= SHARED_NAMES, (
        f"{len(shared)} class names stand in several modules, at most {SHARED_NAMES}. Name what tells the new one "
        f"from the other, or use the other one; where it is its module's own business, begin it with _.\n  {listed}"
    )


def test_no_module_needs_itself_to_be_imported(sources: tuple[Module, ...]) -> None:
    at_once = [each for each in house.imports(sources) if not each.lazy and not each.types]
    assert house.circles(house.graph(at_once)) == [], "move what both need into a module that imports neither"


def test_modules_know_each_other_in_one_direction(sources: tuple[Module, ...]) -> None:
    found = house.imports(sources)
    circles = house.circles(house.graph(found))
    inside = [each for each in found if any({each.importer, each.imported} <= set(circle) for circle in circles)]
    listed = "\n  ".join(str(each) for each in inside)
    assert circles == ALLOWED_CIRCLES, (
        "Modules import each other, if lazily or for types. Let the lower one name a Protocol of its own, or move "
        f"what both need into a module that imports neither.\n  {listed}"
    )


def test_a_test_that_sleeps_says_what_for() -> None:
    """Fakes and applications are slow because they are meant to be; ``tests/waiting.py`` is how to wait."""
    found: list[str] = []
    for folder in ("unit", "bpf", "netns", "kube"):
        for each in house.modules(ROOT / "tests" / folder):
            found += house.unexplained_sleeps(each)
    assert found == [], (
        "wait for a state (tests/waiting.py: eventually, until, steady); where nothing shows it, say on the line what "
        "the time is for\n  " + "\n  ".join(found)
    )


# -- what finds it --


def module(text: str, name: str = "p.m") -> Module:
    return Module(ModuleName(name), Path(name.replace(".", "/") + ".py"), text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a if b else c", 0),
        ("a if b else (c if d else e)", 1),
        ("f(a if b else c) if d else e", 1),
        ("[a if b else c, d if e else f]", 0),
    ],
)
def test_finds_nested_ternaries(text: str, count: int) -> None:
    assert len(list(house.nested_ternaries(module(text)))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("[a for a in b]", 0), ("{a for b in c for a in b}", 1), ("any(a for b in c if b for a in b)", 1)],
)
def test_finds_nested_comprehensions(text: str, count: int) -> None:
    assert len(list(house.nested_comprehensions(module(text)))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a, b = c, d", 1),
        ("self.a, self.b = a, b", 1),
        ("a, b = b, a", 0),
        ("a, b = b, a % b", 0),
        ("a, b = c", 0),
        ("first, rest = f(x)", 0),
        ("self.waiting, waiting = [], self.waiting", 0),
    ],
)
def test_finds_tuple_assignments_but_not_swaps(text: str, count: int) -> None:
    assert len(list(house.tuple_assignments(module(text)))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("a + (b == c)", 1), ("'s' * (a > 1)", 1), ("pair[version == 6]", 1), ("(a + b) == c", 0), ("a[b]", 0)],
)
def test_finds_counted_booleans(text: str, count: int) -> None:
    assert len(list(house.counted_booleans(module(text)))) == count


def test_finds_long_functions() -> None:
    found = module("def short():\n    pass\n\nasync def long():\n    pass\n    pass\n")
    assert list(house.long_functions(found, 2)) == ["p/m.py:4 long: 3 lines"]


def test_counts_lines_with_any_but_not_its_import() -> None:
    found = module("from typing import Any\n\ndef f(a: Any, b: dict[str, Any]) -> int: ...\nc: Any = 1\n")
    assert list(house.anys(found)) == ["p/m.py:3", "p/m.py:4"]


def test_finds_public_class_names_of_several_modules() -> None:
    one = module("class A: ...\nclass B: ...\nclass _C: ...\n", "p.one")
    two = module("class A: ...\nclass _C: ...\nclass D:\n    class B: ...\n", "p.two")
    assert house.shared_names([one, two]) == {"A": ["p/one.py:1", "p/two.py:1"]}


CIRCLE = (
    module("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import two\n", "p.one"),
    module("def f():\n    from p.three import g\n", "p.two"),
    module("from p import one\nimport json\n", "p.three"),
    module("from p.one import a\nfrom p import nothing", "p.four"),
    module("", "p"),
)


def test_tells_imports_apart() -> None:
    found = {(each.importer, each.imported): (each.lazy, each.types) for each in house.imports(CIRCLE)}
    assert found == {
        ("p.one", "p.two"): (False, True),
        ("p.two", "p.three"): (True, False),
        ("p.three", "p.one"): (False, False),
        ("p.four", "p.one"): (False, False),
        ("p.four", "p"): (False, False),
    }


def test_finds_circles() -> None:
    found = house.imports(CIRCLE)
    assert house.circles(house.graph(found)) == [["p.one", "p.three", "p.two"]]
    assert house.circles(house.graph(each for each in found if not each.lazy)) == []


def test_finds_sleeps_that_say_nothing() -> None:
    text = "sleep(0)\nsleep(1)\ntime.sleep(2)  # so long as the case says\nawait asyncio.sleep(LOOK_SECONDS)\n"
    assert list(house.unexplained_sleeps(module(text))) == ["p/m.py:2"]
