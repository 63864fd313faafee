"""Where the logs of a pod are on its node: the folder of its containers' output, and those of its
emptyDir volumes; and where a service of the machine writes its own. Nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.resources.objects import PodObject

CONFIG_HASH: Final = "kubernetes.io/config.hash"
"""Annotation of a static pod's mirror: the uid by which the kubelet knows the pod."""


@dataclass(frozen=True, slots=True)
class LogFolders:
    """*outputs*: ``NAMESPACE_POD_UID/CONTAINER/N.log``. *volumes*: a folder a pod. *kubelet*: whether a
    kubelet made those, which keeps emptyDir volumes in a folder of their own. *services*: the folders of
    the service of the machine that a pod is, none for other pods; each is a volume of its name. *unit*: what systemd
    calls that service; empty for other pods.
    """

    outputs: Path
    volumes: Path
    kubelet: bool
    services: Callable[[PodObject], tuple[Path, ...]] = lambda _: ()
    unit: Callable[[PodObject], str] = lambda _: ""

    def output(self, pod: PodObject) -> Path:
        """Return the folder with one for each of *pod*'s containers."""
        return self.outputs / f"{pod.namespace}_{pod.name}_{self._uid(pod)}"

    def volume(self, pod: PodObject, name: str) -> Path:
        """Return where *pod*'s volume *name*, a DNS label, is."""
        for folder in self.services(pod):
            if folder.name == name:
                return folder
        below = "volumes/kubernetes.io~empty-dir" if self.kubelet else ""
        return self.volumes / self._uid(pod) / below / name

    def _uid(self, pod: PodObject) -> str:
        """Return the uid by which the kubelet knows *pod*. Anybody may write the annotation: it counts where
        the kubelet has made a folder of that name, which holds the pod's own namespace and name.
        """
        said = pod.annotations.get(CONFIG_HASH, "")
        if not (self.kubelet and said.isalnum() and said.isascii()):
            return pod.uid
        return said if (self.outputs / f"{pod.namespace}_{pod.name}_{said}").is_dir() else pod.uid
