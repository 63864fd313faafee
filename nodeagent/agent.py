"""The composition root of the daemon: which code each of its processes runs.

Everything that more than one process needs is imported here, once, before the first fork.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from nodeagent import log_lines, supervisor
from nodeagent.config import AgentConfig
from nodeagent.control import main as control
from nodeagent.errors import ControlError
from nodeagent.folder_lock import InUseError, held, shared
from nodeagent.forking import CONTROL, Role
from nodeagent.hand_over import EndingError, HandOver, Predecessor
from nodeagent.messages import COLLECTOR, WORKER
from nodeagent.proxy import worker
from nodeagent.pulse import Pulse
from nodeagent.redirect import pins
from nodeagent.service_manager import ServiceManager

log = logging.getLogger("nodeagent.agent")
LOOK_SECONDS: Final = 0.05
"""Between two looks whether a daemon that ends has ended."""


def main(
    config: AgentConfig,
    path: Path | None = None,
    manager: ServiceManager | None = None,
    faults: tuple[str, ...] = (),
) -> int:
    """Run the daemon in the foreground until SIGTERM; return its exit status. *path*: of its agent.yaml, of which
    a reload reads section ``logs`` again; None: it is not. *manager*: is told when it works; None: nobody is.
    *faults*: what is wrong with sections of agent.yaml that it starts without.

    Where a daemon runs with these folders already, this one takes the node over from it. Raises
    ControlError when that one hands nothing over; nothing of it has been touched then. Raises
    KernelError when bpffs cannot be mounted.
    """
    log_lines.to_stderr("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    for fault in faults:
        log.error("%s; the daemon starts without that section", fault)
    take_descriptors()
    pinned = config.redirect.pin_directory
    if pinned.is_relative_to(pins.BPFFS):
        pins.mount_bpffs()
    folders = {"runtimeDirectory": config.runtime_directory, "redirect.pinDirectory": pinned}
    with owned(folders, lasts=config.kubernetes is not None) as estate:
        estate = replace(estate, manager=manager or ServiceManager())
        roles = {CONTROL: Role(partial(control.main, config, path, faults)), WORKER: Role(worker.main, beats=True)}
        stop_seconds = config.proxy.timeouts.stop
        if config.logs is not None:
            roles[COLLECTOR] = Role(_collector)
            stop_seconds += config.logs.stop_seconds
        return supervisor.main(roles, estate, stop_seconds)


def _collector(end: socket.socket, pulse: Pulse) -> None:
    """Run the logs' collector; imported where there is one, for it brings what no other process needs."""
    from nodeagent.logs import collector

    collector.main(end, pulse)


@contextmanager
def owned(folders: Mapping[str, Path], *, lasts: bool = False) -> Iterator[supervisor.Estate]:
    """Hold the locks of *folders*, by the settings that name them; the first is where daemons meet. *lasts*: a
    daemon that has given them up may have them again.

    Raises ControlError.
    """
    with ExitStack() as stack:
        estate = _estate(stack, folders)
        yield replace(estate, regain=partial(_regained, stack, folders)) if lasts else estate


def _estate(stack: ExitStack, folders: Mapping[str, Path]) -> supervisor.Estate:
    """Return what this daemon has from the one before; *stack* gives it back. Raises ControlError."""
    begun = time.monotonic()
    while True:
        try:
            return _tried(stack, folders)
        except EndingError as error:
            if time.monotonic() - begun > error.seconds:
                raise
        time.sleep(LOOK_SECONDS)


def _tried(stack: ExitStack, folders: Mapping[str, Path]) -> supervisor.Estate:
    """Raises ControlError, EndingError."""
    try:
        return _own_estate(stack, folders)
    except InUseError as error:
        in_use = error
    try:
        return _shared_estate(stack, Predecessor.meet(next(iter(folders.values()))), folders)
    except EndingError as error:
        raise EndingError(f"{in_use}; {error}", error.seconds) from None
    except ControlError as error:
        raise ControlError(f"{in_use}; {error}") from None


def _own_estate(stack: ExitStack, folders: Mapping[str, Path]) -> supervisor.Estate:
    """Hold the locks of *folders* alone. Raises ControlError; InUseError: another daemon has them."""
    with ExitStack() as trial:
        locks = {setting: trial.enter_context(held(folder, setting)) for setting, folder in folders.items()}
        stack.push(trial.pop_all())
    return supervisor.Estate(locks, None, HandOver(next(iter(folders.values())), locks))


def _regained(stack: ExitStack, folders: Mapping[str, Path], returned: bool) -> supervisor.Estate | None:
    """Return what a daemon that had given everything up has again, where nobody else has it; *returned*: also from
    whoever has it. None: it cannot be had now.
    """
    try:
        return _tried(stack, folders) if returned else _own_estate(stack, folders)
    except ControlError:
        return None


def _shared_estate(stack: ExitStack, predecessor: Predecessor, folders: Mapping[str, Path]) -> supervisor.Estate:
    """Hold the locks of *folders* together with *predecessor*. Raises ControlError for other folders."""
    missing = folders.keys() ^ predecessor.locks.keys()
    if missing:
        raise ControlError(f"it shares other locks than this one needs: {', '.join(sorted(missing))}")
    locks = {setting: shared(folder, setting, predecessor.locks[setting]) for setting, folder in folders.items()}
    for lock in locks.values():
        stack.callback(lock.close)
    return supervisor.Estate(locks, predecessor, HandOver(next(iter(folders.values())), locks))


def take_descriptors() -> None:
    """Let this process and its children have as many descriptors as they may: a proxied connection
    takes two, a pod four for each worker, and what a service manager grants at first (1024) one pod
    could use up for all.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
