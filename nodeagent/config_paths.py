"""The paths that agent.yaml names: what the daemon does with each, and whether it can, before it starts.

A setting whose type is a path has a line in ``USES``: a test finds those that have none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodeagent.errors import NodeagentError
from nodeagent.istio import USER

if TYPE_CHECKING:
    from nodeagent.config import AgentConfig
    from nodeagent.sections import ConfigSection

_Trial = Callable[[Path], None]
"""Raises OSError, or ValueError in words, for a path that cannot be used."""


@dataclass(frozen=True, slots=True)
class Use:
    """What the daemon does with a setting's path."""

    trial: _Trial
    step: str
    """What to do where it cannot."""
    lost: str
    """What there is not then."""
    needed: bool = False
    """Without it no daemon starts, or none ever has a certificate."""
    user: int = 0
    """Whose rights count."""


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A path, by the key that names it."""

    key: str
    path: Path
    use: Use


@dataclass(frozen=True, slots=True)
class WrongPath:
    """One that cannot be used, and why."""

    named: NamedPath
    why: str
    needed: bool
    """As its use says, unless what is mounted there is not there yet."""

    @property
    def words(self) -> str:
        """Say path, cause and next step."""
        return f"{self.named.path}: {self.why}; {self.named.use.step}"


def _file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise ValueError("is a folder, where a file is expected")
        if not os.read(descriptor, 1):
            raise ValueError("is empty")
    finally:
        os.close(descriptor)


def _folder(path: Path) -> None:
    with os.scandir(path):
        pass


def _made(path: Path) -> None:
    """It is a folder to write to, or can be made."""
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(f"{there} is no folder" if there != path else "is no folder")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{there} cannot be written to")


def _appended(path: Path) -> None:
    if path.is_dir():
        raise ValueError("is a folder, where a file is expected")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder that is there")
    if not os.access(path if path.exists() else path.parent, os.W_OK, effective_ids=True):
        raise ValueError("cannot be written to")


def _beside(path: Path) -> None:
    """Its folder is made where it is missing."""
    if path.is_dir():
        raise ValueError("is a folder, where a file is expected")
    _made(path.parent)


def _socket(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ValueError("is no socket")


def _cgroup(path: Path) -> None:
    _folder(path)
    if not (path / "cgroup.procs").exists():
        raise ValueError("is no cgroup")


def _identity_mount(path: Path) -> None:
    from nodeagent.identity.sources import CHAIN, KEY, ROOTS

    for name in (CHAIN, KEY, ROOTS):
        try:
            _file(path / name)
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None


_READABLE: Final = f"it must exist, and user {USER}, who delivers logs, must be able to read it"
_CERTIFICATES: Final = "certificates: no mTLS, and the agent never is ready"
_SINK: Final = "what that sink is for: its records wait"
_SINK_FILE: Final = Use(_file, _READABLE, _SINK, user=USER)
USES: Final = {
    "AgentConfig.source": Use(_folder, "is the lab (or the controller) up? set source", "the daemon", True),
    "AgentConfig.resources": Use(_folder, "make the folder, or take it out of resources", "the daemon", True),
    "AgentConfig.runtime_directory": Use(_made, "set runtimeDirectory to a folder of root's", "the daemon", True),
    "Redirect.cgroup": Use(
        _cgroup, "set redirect.cgroup to the pods' one, or leave it out: then it is found", "the daemon", True
    ),
    "Redirect.pin_directory": Use(_made, "set redirect.pinDirectory to a folder below bpffs", "the daemon", True),
    "Identity.ca_directory": Use(_made, "the agent must be able to read and write it", "the daemon", True),
    "IstioCaConfig.token_file": Use(
        _file, "mount the node's token there, or set identity.istioCa.tokenFile", _CERTIFICATES, True
    ),
    "IstioCaConfig.root_cert_file": Use(
        _file, "put the authority's roots there, or set identity.istioCa.rootCertFile", _CERTIFICATES, True
    ),
    "IdentityFiles.directory": Use(
        _identity_mount, "does what writes it run? set identity.files.directory", _CERTIFICATES, True
    ),
    "AccessLogConfig.path": Use(
        _appended, "does its folder exist, and may the agent write there?", "the daemon", True
    ),
    "Kubernetes.kubeconfig": Use(
        _file, "set kubernetes.kubeconfig, or leave it out in a pod of the cluster", "the daemon", True
    ),
    "Kubernetes.runtime": Use(
        _socket, "is the container runtime up? set kubernetes.runtime", "pods' places: none is captured", True
    ),
    "Kubernetes.nri": Use(
        _socket, "switch NRI on in the runtime, or leave kubernetes.nri out", "a runtime that waits for the agent"
    ),
    "Kubernetes.state_directory": Use(
        _made, "set kubernetes.stateDirectory to a folder of root's", "a start while the API server is away"
    ),
    "Kubernetes.kubelet": Use(_folder, "set kubernetes.kubelet to its --root-dir", "csi.nodeagent.io volumes"),
    "LogSettings.state_directory": Use(_made, "set logs.stateDirectory to a folder of root's", "all logs"),
    "LogSettings.pod_logs": Use(_folder, "is it mounted? set logs.podLogs", "containers' output"),
    "LogSettings.pod_volumes": Use(_folder, "is it mounted? set logs.podVolumes", "files in pods' volumes"),
    "LogSettings.docker_containers": Use(
        _folder, "is it mounted? leave logs.dockerContainers out where there is no Docker", "containers' output"
    ),
    "LogSettings.fluentd_positions": Use(
        _file, "leave it out where no Fluentd was", "its positions: files are read from their beginning"
    ),
    "NodeJournal.folders": Use(_folder, "is it mounted? set logs.node.journal.folders", "what of the journal is there"),
    "NodeFile.path": Use(_file, "is it mounted? set logs.node.files", "that file, until it is there"),
    "BasicAuth.password_file": _SINK_FILE,
    "SinkAuth.api_key_file": _SINK_FILE,
    "SinkAuth.bearer_file": _SINK_FILE,
    "SinkTls.ca_file": _SINK_FILE,
    "SinkTls.certificate_file": _SINK_FILE,
    "SinkTls.key_file": _SINK_FILE,
    "OtlpSettings.headers": _SINK_FILE,
    "ForwardSettings.shared_key_file": _SINK_FILE,
    "ForwardSettings.password_file": _SINK_FILE,
    "FileSinkSettings.path": Use(
        _beside, "on a cluster a path below logs.stateDirectory + /sinks is mounted", _SINK
    ),
}  # fmt: skip
"""By section and field: what a path is for."""


def named_paths(config: AgentConfig) -> Iterator[NamedPath]:
    """Yield the paths that agent.yaml itself names; what it leaves out is found, or has its default."""
    return _of_section(config, "")


def wrong_paths(config: AgentConfig) -> Iterator[WrongPath]:
    """Yield those of *config*'s that cannot be used. Root is asked as the user who is to use each."""
    for named in named_paths(config):
        if why := _why(named):
            awaited = config.kubernetes is not None and _is_awaited(named.path)
            yield WrongPath(named, why, named.use.needed and not awaited)


def _of_section(section: ConfigSection, place: str) -> Iterator[NamedPath]:
    for name, field in type(section).model_fields.items():
        if name in section.model_fields_set:
            value = getattr(section, name)
            yield from _of_value(value, f"{place}{field.alias or name}", f"{type(section).__name__}.{name}")


def _of_value(value: object, key: str, setting: str) -> Iterator[NamedPath]:
    from nodeagent.sections import ConfigSection

    if isinstance(value, ConfigSection):
        yield from _of_section(value, f"{key}.")
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _of_value(each, f"{key}.{name}", setting)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _of_value(each, f"{key}.{index}", setting)
    elif isinstance(value, Path) or (setting in USES and value and value != "-"):
        yield NamedPath(key, Path(str(value)), USES[setting])


def _why(named: NamedPath) -> str:
    """Return why a path cannot be used, in words; empty: it can."""
    try:
        with _as_user(named.use.user):
            named.use.trial(named.path)
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, NodeagentError) as error:
        return str(error)
    return ""


def _is_awaited(path: Path) -> bool:
    """Say whether *path* is to be in an empty folder: what is mounted there is not made yet, and a kubelet starts no
    agent before it is. Entries ``..`` and more are the kubelet's own, by which it changes a volume at once
    (Kubernetes, ``pkg/volume/util/atomic_writer.go``).
    """
    try:
        return not path.exists() and all(each.name.startswith("..") for each in path.parent.iterdir())
    except OSError:
        return False


@contextmanager
def _as_user(user: int) -> Iterator[None]:
    """Have the rights of *user* only, where this process may become others."""
    if os.geteuid() or not user:
        yield
        return
    group = os.getegid()
    groups = os.getgroups()
    with ExitStack() as back:
        try:
            os.setgroups([])
            back.callback(os.setgroups, groups)
            os.setegid(user)
            back.callback(os.setegid, group)
            os.seteuid(user)
            back.callback(os.seteuid, 0)
        except PermissionError:  # that this right is missing is said by itself
            back.close()
        yield
