"""What systemd says of units, by ``systemctl show``, whose output is made to be read by programs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nodeagent.errors import KernelError, shown
from nodeagent.places.cgroups import slice_path

PATIENCE_SECONDS: Final = 5.0
PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "ControlGroup",
    "Slice",
    "NetworkNamespacePath",
    "LogsDirectory",
)
_RUNNING: Final = frozenset(("active", "reloading", "refreshing"))
_PASSING: Final = frozenset(("activating", "deactivating", *_RUNNING - {"active"}))


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as systemd has it now."""

    name: str
    loaded: str
    """``loaded``, or why it is not: ``not-found``, ``masked``, ``bad-setting``, ``error``."""
    state: str
    """``active``, ``inactive``, ``failed``, ``activating``, …"""
    pid: int
    """Of its main process; 0: none."""
    cgroup: str
    """Where its processes are or will be, from the top of the hierarchy; empty: not known."""
    namespace: str
    """The file of the network namespace that it is given; empty: none is named."""
    logs: tuple[str, ...] = ()
    """Its folders below /var/log."""

    @property
    def ready(self) -> bool:
        """Say whether it has started, as far as it says so itself."""
        return self.state in _RUNNING

    @property
    def passing(self) -> bool:
        """Say whether its state is one that does not last."""
        return self.state in _PASSING


class Units(Protocol):
    """Who knows units."""

    async def look(self, names: Sequence[str]) -> dict[str, Unit]:
        """Return the units *names* as they are now, those too that there are not, by name. Raises
        KernelError where systemd does not answer.
        """


class _RefusedError(KernelError):
    """systemctl ended with an error, which may be of one unit alone."""


class Systemctl:
    """Asks systemd itself; *program* is injected for tests."""

    def __init__(self, program: str = "systemctl") -> None:
        self._program = program

    async def look(self, names: Sequence[str]) -> dict[str, Unit]:
        """As Units says. systemctl tells nothing of any unit where one's name is none to it: each is asked for
        alone then.
        """
        if not names:
            return {}
        try:
            return parsed(names, await self._show(names))
        except _RefusedError:
            if len(names) == 1:
                raise
        found: dict[str, Unit] = {}
        refused: list[_RefusedError] = []
        for name in names:
            try:
                found |= parsed([name], await self._show([name]))
            except _RefusedError as error:
                refused.append(error)
                found[name] = Unit(name, "", "", 0, "", "")
        if len(refused) == len(names):
            raise refused[0]
        return found

    async def _show(self, names: Sequence[str]) -> str:
        argv = (self._program, "--no-pager", "show", f"--property={','.join(PROPERTIES)}", "--", *names)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise KernelError(
                f"services: {self._program}: {error.strerror}: services are units of systemd; is this machine's "
                "init systemd?"
            ) from None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                out, said = await process.communicate()
        except TimeoutError:
            process.kill()
            raise KernelError(f"services: systemd does not answer within {PATIENCE_SECONDS:g} s") from None
        if process.returncode:
            words = shown(said.decode(errors="replace").strip())
            raise _RefusedError(f"services: systemd does not say what runs: {words}; is it this machine's init?")
        return out.decode(errors="replace")


def parsed(names: Sequence[str], text: str) -> dict[str, Unit]:
    """Return the units of *text*, a block of ``NAME=VALUE`` lines each in the order of *names*. Raises
    KernelError where there are not as many.
    """
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise KernelError(f"services: systemd was asked for {len(names)} units, and told {len(blocks)}")
    return {name: _unit(name, block) for name, block in zip(names, blocks, strict=True)}


def _unit(name: str, block: str) -> Unit:
    said: Mapping[str, str] = dict(line.partition("=")[::2] for line in block.splitlines())
    pid = said.get("MainPID", "")
    above = slice_path(said.get("Slice", ""))
    return Unit(
        name=name,
        loaded=said.get("LoadState", ""),
        state=said.get("ActiveState", ""),
        pid=int(pid) if pid.isascii() and pid.isdigit() else 0,
        cgroup=said.get("ControlGroup", "") or (f"{above}/{name}" if above else ""),
        namespace=said.get("NetworkNamespacePath", ""),
        logs=tuple(said.get("LogsDirectory", "").split()),
    )


def namespace_file(unit: Unit) -> Path | None:
    """Return where the network namespace of *unit* is entered; None while there is none."""
    if unit.namespace:
        return Path(unit.namespace)
    return Path(f"/proc/{unit.pid}/ns/net") if unit.pid else None
