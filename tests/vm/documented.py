"""What the documents have a stranger do on machines, as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.vm.machines import ROOT

PAGE = ROOT / "docs" / "vm.md"
INSTALL = ROOT / "docs" / "install.md"
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


def service(page: str, name: str) -> tuple[str, str]:
    """Return what *page* has for services of systemd, for one called *name*: commands for a shell, and what
    agent.yaml gets.
    """
    _, _, section = page.replace("legacy", name).partition("\n## Services of systemd\n")
    _, commands, _, settings, *_ = section.split("```")
    return commands, settings.removeprefix("yaml\n")
