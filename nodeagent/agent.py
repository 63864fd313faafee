"""The composition root of the daemon: which code each of its processes runs.

Everything that more than one process needs is imported here, once, before the first fork.
"""

from __future__ import annotations

import resource
from functools import partial

from nodeagent import log_lines, supervisor
from nodeagent.config import AgentConfig
from nodeagent.control import main as control
from nodeagent.folder_lock import held
from nodeagent.forking import CONTROL, Role
from nodeagent.messages import WORKER
from nodeagent.proxy import worker
from nodeagent.redirect import pins


def main(config: AgentConfig) -> int:
    """Run the daemon in the foreground until SIGTERM; return its exit status.

    Raises ControlError when a daemon runs with one of its folders already; nothing of that one has
    been touched then. Raises KernelError when bpffs cannot be mounted.
    """
    log_lines.to_stderr("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    take_descriptors()
    pinned = config.redirect.pin_directory
    if pinned.is_relative_to(pins.BPFFS):
        pins.mount_bpffs()
    with held(config.runtime_directory, "runtimeDirectory") as own, held(pinned, "redirect.pinDirectory") as kernel:
        roles = {CONTROL: Role(partial(control.main, config)), WORKER: Role(worker.main, beats=True)}
        return supervisor.main(roles, (own, kernel), config.proxy.timeouts.stop)


def take_descriptors() -> None:
    """Let this process and its children have as many descriptors as they may: a proxied connection
    takes two, a pod four for each worker, and what a service manager grants at first (1024) one pod
    could use up for all.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
