"""Taking the agent off a node: what outlives its processes is what is pinned in bpffs, its own
folder, and what it told the other nodes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from nodeagent.config import AgentConfig, Kubernetes
from nodeagent.errors import KernelError
from nodeagent.folder_lock import held
from nodeagent.hand_over import COUNTS_SOCKET, SOCKET
from nodeagent.logs.settings import STATE_DIRECTORY
from nodeagent.redirect import pins
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.marks import DirectoryMarks
from nodeagent.resources.objects import PodObject
from nodeagent.resources.source import Source
from nodeagent.services.objects import own_files

STATE: Final = ("cluster.snapshot", "cluster.new")
"""What it keeps of a cluster (``kube/snapshot.py``), and one that was not written to its end."""
OWN: Final = ("admin.sock", SOCKET, COUNTS_SOCKET, "pods", "last-good", *STATE)
"""What the daemon makes in its runtime directory."""
POSITIONS: Final = "positions"
"""How the names begin of the files in which the collector of logs keeps how far it has read."""
WANTED: Final = (
    'the agent\'s ClusterRole wants the rule {apiGroups: ["nodeagent.io"], resources: [nodestatuses], verbs: [delete]}'
)
"""What it takes to take back what the node tells others."""
CURSOR: Final = "cursor"
"""How far a buffer was delivered: of no use without what is in it."""
KEPT: Final = "logs stay, for somebody may miss them (no sink has taken them, or a file sink wrote them): "
"""What is said before the paths of files that stay; ``uninstall --cluster`` finds them by it."""
MAX_NAMED: Final = 8
"""Files that stay, by name."""
log = logging.getLogger("nodeagent.uninstall")


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that is gone now; ``path``: where it was."""

    kind: Literal["mark", "link", "program", "map", "file"]
    path: str


def uninstall(config: AgentConfig) -> list[Removed]:
    """Detach and remove everything that the daemon of *config* left, and return it; nothing, where
    nothing is.

    From the first link on nothing is captured, and nothing protected. Raises ControlError, naming
    the process, when a daemon runs; nothing has been touched then. Raises KernelError or
    ConfigError when something cannot be removed, and may be called again.
    """
    pinned, own = config.redirect.pin_directory, config.runtime_directory
    with ExitStack() as locks:
        for folder, setting in ((own, "runtimeDirectory"), (pinned, "redirect.pinDirectory")):
            if folder.is_dir():
                locks.enter_context(held(folder, setting))
        try:
            everything = (
                _marks(config),
                _pins(pinned),
                _files(own, OWN),
                _state(config),
                _driver(config),
                _logs(config),
            )
            return [*chain.from_iterable(everything)]
        except OSError as error:
            raise KernelError(
                f"{error.filename}: cannot be removed: {error.strerror}; uninstalling needs root"
            ) from None


def _marks(config: AgentConfig) -> Iterator[Removed]:
    """Tell the other nodes that this node's pods take no mTLS any more."""
    if config.kubernetes is not None:
        yield from _node_status(config.node, config.kubernetes)
        return
    if config.source is None or not config.source.is_dir():
        return
    source = DirectorySource(config.source)
    marks = DirectoryMarks(config.source)
    changes = asyncio.run(_everything(source))
    pods = {
        change.object.uid
        for change in changes
        if isinstance(change, Change) and isinstance(change.object, PodObject) and change.object.node == config.node
    }
    for change in changes:
        if isinstance(change, EnrolledChange) and change.uid in pods:
            marks.publish(change.uid, False)
            yield Removed("mark", change.uid)
    for path, _ in list(own_files(config.source, config.node)):
        path.unlink()
        yield Removed("file", str(path))


def _node_status(node: str, kubernetes: Kubernetes) -> Iterator[Removed]:
    """As :func:`_marks`; where the API server does not answer, the node's lease ends all the same."""
    from nodeagent.kube.access import ApiError, open_access
    from nodeagent.kube.client import KubeClient
    from nodeagent.kube.kinds import NODE_STATUSES

    path = f"{NODE_STATUSES.path(NODE_STATUSES.versions[0])}/{node}"
    try:
        asyncio.run(KubeClient(open_access(kubernetes.kubeconfig)).delete(path))
    except ApiError as error:
        if error.status != 404:
            hint = f"; {WANTED}" if error.status == 403 else ""
            log.warning("NodeStatus %s stays, and says nothing once its lease has ended: %s%s", node, error, hint)
        return
    yield Removed("mark", path)


async def _everything(source: Source) -> list[AnyChange]:
    try:
        return await source.changes()
    finally:
        source.close()


def _pins(directory: Path) -> Iterator[Removed]:
    if not directory.is_dir():
        return
    if pins.filesystem(directory) != "bpf":
        raise KernelError(f"{directory}: is not in bpffs, so nothing in it is the agent's; see redirect.pinDirectory")
    kinds: dict[str, Literal["link", "program", "map"]] = {"links": "link", "progs": "program", "maps": "map"}
    for path in pins.cleanup(directory):
        yield Removed(kinds[path.parent.name], str(path))


def _state(config: AgentConfig) -> Iterator[Removed]:
    """Remove what is known of the cluster where it has a folder of its own; that one goes too, unless
    something else is in it, or it is mounted there.
    """
    folder = config.kubernetes.state_directory if config.kubernetes is not None else None
    if folder is None or not folder.is_dir():
        return
    yield from _files(folder, STATE)
    with suppress(OSError):
        folder.rmdir()
        yield Removed("file", str(folder))


def _driver(config: AgentConfig) -> Iterator[Removed]:
    """Have the kubelet forget the driver of volumes; those that pods have go with the pods."""
    from nodeagent.control.csi_volumes import FILES

    if config.kubernetes is not None:
        yield from _files(config.kubernetes.kubelet, FILES)


def _logs(config: AgentConfig) -> Iterator[Removed]:
    """Remove how far logs were read. Records that no sink has are somebody's data: they stay, and that is said."""
    folder = _logs_folder(config)
    if folder is None or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(POSITIONS) and path.is_file():
            path.unlink()
            yield Removed("file", str(path))
        elif path.is_dir() and not any(each.is_file() and each.name != CURSOR for each in path.rglob("*")):
            yield from _collectors_folder(path)
    if left := sorted(str(path) for path in folder.rglob("*") if path.is_file()):
        more = f" and {len(left) - MAX_NAMED} more below {folder}" if len(left) > MAX_NAMED else ""
        log.warning("%s%s%s", KEPT, ", ".join(left[:MAX_NAMED]), more)
        return
    with suppress(OSError):  # in a container it is a mount, and the node keeps it
        folder.rmdir()
        yield Removed("file", str(folder))


def _logs_folder(config: AgentConfig) -> Path | None:
    """Return where logs were read to: on a cluster also by an agent that was told to read some once."""
    if config.logs is not None:
        return config.logs.state_directory
    return STATE_DIRECTORY if config.kubernetes is not None else None


def _collectors_folder(folder: Path) -> Iterator[Removed]:
    """Remove *folder*, whose parts are another user's: root in a container may not write to them, but take them. One
    that stays, as it is empty, is only said.
    """
    try:
        for path, _, _ in os.walk(folder):
            if os.lstat(path).st_uid != os.geteuid():
                os.chown(path, os.geteuid(), -1, follow_symlinks=False)
        shutil.rmtree(folder)
    except OSError as error:
        log.warning(
            "%s stays, with no records in it: %s: %s; remove it by hand", folder, error.filename, error.strerror
        )
        return
    yield Removed("file", str(folder))


def _files(directory: Path, names: Iterable[str]) -> Iterator[Removed]:
    for path in (directory / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        yield Removed("file", str(path))
