"""What docs/vm.md has a stranger ask the machines, as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.vm.machines import ROOT

PAGE = ROOT / "docs" / "vm.md"
_COMMAND = re.compile(r'vagrant ssh (?P<machine>\S+) -c "(?P<command>[^"]+)" *(?P<said># .*)?')
_IDENTITY = re.compile(r"spiffe://[\w./-]+")


@dataclass(frozen=True)
class Documented:
    """A *command*, on which *machine*, and the *identities* that its comment says are in the answer."""

    machine: str
    command: str
    identities: tuple[str, ...]


def commands(page: str) -> Iterator[Documented]:
    """Yield those of the first block of *page*."""
    _, _, block = page.partition("```\n")
    for line in block.partition("```")[0].splitlines():
        if found := _COMMAND.fullmatch(line):
            yield Documented(found["machine"], found["command"], tuple(_IDENTITY.findall(found["said"] or "")))
