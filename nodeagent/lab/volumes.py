"""A pod's volumes as folders and files of the node, to be bound into its containers."""

from __future__ import annotations

from pathlib import Path

from nodeagent.errors import LabError
from nodeagent.lab.environment import ConfigMaps
from nodeagent.lab.root import Mount
from nodeagent.resources.pod import ConfigMapVolume, Container, HostPath, PodSpec


def prepare(directory: Path, spec: PodSpec, config_maps: ConfigMaps, sockets: Path) -> dict[str, Path]:
    """Make the volumes of *spec* in *directory*, or bring their ConfigMaps up to date, and return
    name -> where it is.

    A csi volume is *sockets*, the folder in which the node's agent serves this pod.

    Raises LabError, naming the volume, if one cannot be had.
    """
    sources = {}
    for volume in spec.volumes:
        source = directory / volume.name
        if volume.host_path:
            source = _host_path(volume.name, volume.host_path)
        else:
            if volume.csi:
                source = sockets
            source.mkdir(parents=True, exist_ok=True)
            if volume.empty_dir:
                source.chmod(0o777)  # whoever its containers run as
            if volume.config_map:
                _write(source, volume.name, volume.config_map, config_maps)
        sources[volume.name] = source
    return sources


def mounts(container: Container, spec: PodSpec, sources: dict[str, Path]) -> tuple[Mount, ...]:
    """Return what to bind into *container* of *spec*; raises LabError for a subPath that the volume does not hold."""
    found = []
    always = {volume.name for volume in spec.volumes if volume.csi}
    for each in container.volume_mounts:
        source = sources[each.name] / each.sub_path
        if not source.exists():
            raise LabError(f"container {container.name}: volumeMounts: volume {each.name} holds no {each.sub_path}")
        found.append(Mount(source, each.mount_path, each.read_only or each.name in always))
    return tuple(found)


def _host_path(name: str, volume: HostPath) -> Path:
    path = Path(volume.path)
    if volume.type == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif volume.type == "FileOrCreate" and not path.exists():
        path.touch()
    fits = {
        "Directory": path.is_dir,
        "DirectoryOrCreate": path.is_dir,
        "File": path.is_file,
        "FileOrCreate": path.is_file,
        "Socket": path.is_socket,
    }
    if not fits.get(volume.type, path.exists)():
        raise LabError(f"volume {name}: hostPath {path} is not there or is no {volume.type or 'file'}")
    return path


def _write(directory: Path, name: str, volume: ConfigMapVolume, config_maps: ConfigMaps) -> None:
    data = config_maps(volume.name)
    if data is None:
        if volume.optional:
            return
        raise LabError(f"volume {name}: ConfigMap {volume.name} does not exist")
    files = {item.path: (item.key, item.mode or volume.default_mode) for item in volume.items} or {
        key: (key, volume.default_mode) for key in data
    }
    for path, (key, mode) in files.items():
        if key not in data:
            raise LabError(
                f"volume {name}: ConfigMap {volume.name} has no key {key}; it has {', '.join(data) or 'none'}"
            )
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != data[key]:
            temporary = file.with_name(f".{file.name}.new")
            temporary.write_text(data[key])
            temporary.chmod(mode)
            temporary.replace(file)
