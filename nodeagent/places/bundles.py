"""Sandboxes before the runtime tells of them: as the folder has them from which containerd starts them.

Of each container containerd makes a folder, its OCI bundle, with a ``config.json`` (OCI
runtime-spec) that has the network namespace, the cgroup and, as annotations, whose sandbox it is
(containerd: pkg/cri/annotations). It is written when the pod's network is there and before anything
of the pod is started: what the runtime's list has only when the sandbox runs is known here earlier
by the start of a shim and two runs of runc, which is half a second on a node that is busy.

What is found here is a hint that comes early, and no more: it is read as carefully as what the
runtime says, and holds until the runtime tells of that sandbox, its folder goes, or it has not
become one in a minute. Other runtimes have no such folder; nothing is found, and nothing lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import KernelError, NodeagentError, ResourceError
from nodeagent.places.sandbox import MAX_INFO, Listed, Sandbox, SandboxReport
from nodeagent.resources import inotify, regular_file
from nodeagent.resources.objects import NAME, NAMESPACE, POD_UID
from nodeagent.vocabulary import Address, Json, PodUid

FOLDERS: Final = (
    Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io"),
    Path("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io"),
)
"""Where containerd has the bundles of Kubernetes' containers."""
CONFIG: Final = "config.json"
MOST: Final = 256
"""Folders whose file is waited for at the same time."""
EARLY_SECONDS: Final = 60.0
"""For so long a sandbox is believed that the runtime has not told of."""
_GONE: Final = inotify.DELETE | inotify.MOVED_FROM
"""containerd renames a bundle before it removes it (runtime/v2/bundle.go: atomicDelete)."""
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CRI: Final = "io.kubernetes.cri."
Reader = Callable[[Listed, SandboxReport], Sandbox]
Network = Callable[[Path], Iterable[Address]]
"""Returns the addresses in a network namespace. Raises KernelError."""
log = logging.getLogger("nodeagent.places")


class Bundles:
    """Those in *folders*, made sandboxes by *read*; *network* looks into a namespace. *told* is called
    when there is news.
    """

    def __init__(
        self, read: Reader, network: Network, told: Callable[[], None], *, folders: Iterable[Path] = FOLDERS
    ) -> None:
        self._read = read
        self._network = network
        self._told = told
        self._folders = tuple(folders)
        self._loop = asyncio.get_running_loop()
        self._inotify = -1
        self._watched: dict[int, Path] = {}
        """Folders of bundles, by the watch's number."""
        self._unwritten: dict[int, Path] = {}
        """Bundles whose file is not written yet."""
        self._early: dict[str, tuple[Sandbox, float]] = {}
        """By the runtime's id, and since when, by the loop's clock."""

    def follow(self) -> None:
        """Follow the folders that are there by now; idempotent, and cheap."""
        missing = [folder for folder in self._folders if folder not in self._watched.values()]
        for folder in missing if len(missing) == len(self._folders) else ():
            try:
                if folder.is_dir():
                    self._watch(folder)
            except (KernelError, OSError) as error:
                log.warning("%s; new pods are found a little later", error)

    def early(self, known: Iterable[str]) -> Mapping[PodUid, Sandbox]:
        """Return the sandboxes of which the runtime does not tell yet, by pod; *known* are the ids of those
        of which it does, which are forgotten here.
        """
        for name in known:
            self._early.pop(name, None)
        oldest = self._loop.time() - EARLY_SECONDS
        self._early = {name: found for name, found in self._early.items() if found[1] > oldest}
        return {sandbox.uid: sandbox for sandbox, _ in self._early.values()}

    def close(self) -> None:
        """Stop following; idempotent."""
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
            self._watched.clear()

    def _watch(self, folder: Path) -> None:
        """Raises KernelError, OSError."""
        if self._inotify < 0:
            self._inotify = inotify.open_instance()
            self._loop.add_reader(self._inotify, self._happened)
        self._watched[inotify.watch(self._inotify, folder, inotify.CREATE | _GONE)] = folder

    def _happened(self) -> None:
        for number, mask, name in inotify.events(self._inotify):
            if mask & inotify.IGNORED:
                self._watched.pop(number, None)
                self._unwritten.pop(number, None)
            elif number in self._unwritten:
                self._written(number, name)
            elif number in self._watched and mask & inotify.CREATE and _ID.fullmatch(name):
                self._made(self._watched[number] / name)
            elif mask & _GONE and self._early.pop(name, None) is not None:
                self._told()

    def _made(self, bundle: Path) -> None:
        """A container is to be started from *bundle*: its file is written now, or soon."""
        if len(self._unwritten) >= MOST:
            return
        try:
            number = inotify.watch(self._inotify, bundle, inotify.CLOSE_WRITE)
        except (KernelError, OSError):
            return  # gone again
        self._unwritten[number] = bundle
        self._written(number, CONFIG)

    def _written(self, number: int, name: str) -> None:
        """The file *name* of a bundle may be written to its end."""
        bundle = self._unwritten[number]
        if name == CONFIG and self._take(bundle):
            del self._unwritten[number]
            inotify.unwatch(self._inotify, number)

    def _take(self, bundle: Path) -> bool:
        """Take the sandbox of *bundle*, if it is one; return whether its file has been read."""
        try:
            said = orjson.loads(regular_file.content(bundle / CONFIG, MAX_INFO, links=False))
        except (FileNotFoundError, orjson.JSONDecodeError):
            return False
        except (ResourceError, OSError) as error:
            log.warning("%s: %s; the sandbox is found when the runtime tells of it", bundle / CONFIG, error)
            return True
        found = listed(bundle.name, said)
        if found is not None:
            self.take(found, SandboxReport((), False, orjson.dumps({"runtimeSpec": said}).decode()))
        return True

    def take(self, found: Listed, report: SandboxReport) -> None:
        """Take the sandbox *found*, of which *report* is known, if it can be used and is not known already."""
        if found.id in self._early:
            return
        try:
            sandbox = self._read(found, report)
            addresses = tuple(sorted(self._network(Path(sandbox.place.netns)), key=lambda each: (":" in each, each)))
        except (NodeagentError, OSError) as error:
            log.info("the sandbox of pod %s/%s is found when the runtime tells: %s", found.namespace, found.name, error)
            return
        self._early[found.id] = (
            Sandbox(sandbox.uid, sandbox.namespace, sandbox.name, sandbox.id, sandbox.place, addresses),
            self._loop.time(),
        )
        self._told()


def listed(sandbox: str, said: Json) -> Listed | None:
    """Return whose the container *sandbox* is by its runtime-spec *said*; None where it is no sandbox with a
    network of its own, or does not say whose.
    """
    annotations = said.get("annotations") if isinstance(said, Mapping) else None
    linux = said.get("linux") if isinstance(said, Mapping) else None
    if not isinstance(annotations, Mapping) or not isinstance(linux, Mapping):
        return None
    namespaces = linux.get("namespaces")
    network = any(
        isinstance(each, Mapping) and each.get("type") == "network" and each.get("path")
        for each in (namespaces if isinstance(namespaces, list) else ())
    )
    uid, namespace, name = (str(annotations.get(f"{_CRI}sandbox-{field}")) for field in ("uid", "namespace", "name"))
    whole = POD_UID.fullmatch(uid) and NAMESPACE.fullmatch(namespace) and NAME.fullmatch(name)
    if annotations.get(f"{_CRI}container-type") != "sandbox" or not network or not whole:
        return None
    return Listed(sandbox, PodUid(uid), namespace, name, 0, 0)
