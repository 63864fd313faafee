"""Whether agent.yaml, as it stands on the disk, is what the daemon goes by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nodeagent.config import AgentConfig, load, load_to_start
from nodeagent.errors import ConfigError, ControlError
from nodeagent.telemetry import metrics
from nodeagent.telemetry.store import Store

if TYPE_CHECKING:
    from nodeagent.logs.settings import LogSettings

_Stamp = tuple[int, int, int]
"""What tells one state of a file from another."""


class ConfigFile:
    """The agent.yaml at *path*, from which *config* was read; *logs* returns the section ``logs`` in force, which
    alone is taken anew by a reload. *faults*: what was wrong with sections that *config* is without.
    """

    def __init__(
        self,
        path: Path,
        config: AgentConfig,
        logs: Callable[[], LogSettings | None],
        faults: tuple[str, ...] = (),
    ) -> None:
        self._path = path
        self._faults = faults
        self._config = config
        self._logs = logs
        self._seen: _Stamp | None = None
        self._found: AgentConfig | None = None
        """As it was read last; None: it is wrong."""
        self._wrong = ""

    def read(self) -> AgentConfig:
        """Return it as it is now. Raises ControlError where it is wrong: nothing of it is in force."""
        self._look()
        if self._found is None:
            raise ControlError(f"{self._wrong}; nothing is changed")
        return self._found

    def warnings(self) -> list[str]:
        """Say what of it is not in force; it is read where it changed since the last look."""
        if self._stamp() != self._seen or self._seen is None:
            self._look()
        if self._found is None and self._faults and self._left_out() == self._faults:
            return [f"{each}; the daemon runs without that section" for each in self._faults]
        if self._found is None:
            return [f"{self._wrong}; the daemon goes by agent.yaml as it was"]
        return list(self._differing(self._found))

    def collect(self, store: Store) -> None:
        """Count what of it is not in force."""
        store.set(metrics.CONFIG_FAULTS, (), len(self.warnings()))

    def _left_out(self) -> tuple[str, ...]:
        """Return what is wrong with the sections that a daemon would start without now; none: it would not start."""
        try:
            return load_to_start(self._path)[1]
        except ConfigError:
            return ()

    def _look(self) -> None:
        self._seen = self._stamp()
        try:
            self._found = load(self._path)
            self._wrong = ""
        except ConfigError as error:
            self._found = None
            self._wrong = str(error)

    def _stamp(self) -> _Stamp | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _differing(self, found: AgentConfig) -> Iterator[str]:
        now = _said(found)
        then = _said(self._config)
        others = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        logs = self._logs()
        if (found.logs is None) != (logs is None):
            others.append("logs")
        elif found.logs != logs:
            yield f"{self._path}: logs: what stands there now is not in force: nodeagent reload takes it"
        if others:
            words = "what stands there now is not in force: a restart of the daemon takes it"
            yield f"{self._path}: {', '.join(others)}: {words}"


def _said(config: AgentConfig) -> dict[str, object]:
    """Return what agent.yaml says itself, but for the logs, by section: what it does not say is found out anew."""
    return config.model_dump(exclude_unset=True, by_alias=True, exclude={"logs"})
