"""Images for a cluster, made of what is installed on this machine: no registry, no download, seconds.

A layer is the files of some Debian packages and of all that these depend on, as dpkg lists them. An
archive is an OCI image layout in a tar file, as ``ctr images import`` takes it. Both are kept outside
of the project, by the versions of the packages.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeagent.errors import LabError

APPS: Final = "docker.io/library/apps:lab"
"""Applications: a shell, Python, nginx, wrk, curl, iperf3, tcpdump and what looks at a network."""
PAUSE: Final = "registry.k8s.io/pause:lab"
"""What holds a pod's namespaces; the same files, another program."""
PACKAGES: Final = (
    *("bash", "coreutils", "dash", "findutils", "grep", "sed", "procps", "util-linux", "iproute2", "iputils-ping"),
    *("curl", "openssl", "python3", "nginx-light", "wrk", "iperf3", "tcpdump"),
)
_DPKG: Final = Path("/var/lib/dpkg")
_LEFT_OUT: Final = frozenset({"debconf", "dpkg", "perl-base", "init-system-helpers", "install-info", "tzdata"})
"""Only for the scripts by which packages are installed."""
_UNREAD: Final = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug|bash-completion)/|.*\.pyc$")
_FORMAT: Final = "1"
"""Part of what an archive is known by: another number where this module makes other files."""
_USERS: Final = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
_GROUPS: Final = "root:x:0:\nadm:x:4:\nwww-data:x:33:\nnogroup:x:65534:\n"
_SITE: Final = "server { listen 80; listen [::]:80; root /var/www/html; access_log /dev/stdout; }\n"
_FILES: Final = {
    "etc/passwd": _USERS,
    "etc/group": _GROUPS,
    "etc/nginx/sites-enabled/lab": _SITE,
    "var/www/html/index.html": "answered by nginx\n",
}
"""What the scripts of packages would write."""
_LINKS: Final = ("bin", "sbin", "lib", "lib64")
"""Folders of the root that are links to those below /usr."""
_FOLDERS: Final = {"tmp": 0o1777, "run": 0o755, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755}
"""Folders of the root that are not the packages' own, and their modes."""
_ENVIRONMENT: Final = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)


@dataclass(frozen=True, slots=True)
class Image:
    """A name, and what it runs when its pod says nothing else."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Package:
    version: str
    depends: Sequence[Sequence[str]]
    """Every group once, by any of its members."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The packages of this machine; *providers*: who stands in for what is no package."""

    packages: Mapping[str, _Package] = field(repr=False)
    providers: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, status: Path = _DPKG / "status") -> Installed:
        """Read dpkg's list; raises LabError where there is none."""
        try:
            text = status.read_text()
        except OSError as error:
            raise LabError(f"{status}: {error.strerror}: images are made of Debian's packages") from None
        packages: dict[str, _Package] = {}
        providers: dict[str, str] = {}
        for paragraph in text.split("\n\n"):
            fields: dict[str, str] = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", paragraph, re.MULTILINE))
            if not fields.get("Status", "").endswith(" installed"):
                continue
            name = fields["Package"]
            needs = ", ".join(fields[each] for each in ("Pre-Depends", "Depends") if each in fields)
            packages[name] = _Package(fields["Version"], [_names(group, "|") for group in needs.split(",")])
            providers |= dict.fromkeys(_names(fields.get("Provides", ""), ","), name)
        return cls(packages, providers)

    def closure(self, wanted: Sequence[str]) -> Mapping[str, str]:
        """Return the versions of *wanted* and of all they depend on, by name; raises LabError for
        what is not installed.
        """
        if missing := [name for name in wanted if name not in self.packages]:
            raise LabError(f"the cluster's images need what is not installed: apt-get install {' '.join(missing)}")
        found: dict[str, str] = {}
        waiting = list(wanted)
        while waiting:
            name = waiting.pop()
            if name in found or name in _LEFT_OUT:
                continue
            found[name] = self.packages[name].version
            waiting += filter(None, map(self._member, self.packages[name].depends))
        return dict(sorted(found.items()))

    def _member(self, group: Sequence[str]) -> str | None:
        """Return the first installed package of *group*, or who provides one."""
        for name in group:
            if name in self.packages:
                return name
        return next((self.providers[name] for name in group if name in self.providers), None)


def _names(text: str, separator: str) -> list[str]:
    """Return the packages of a list, without versions and architectures."""
    return [re.split(r"[\s:(]", each.strip())[0] for each in text.split(separator) if each.strip()]


def base(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the archive with applications and pause, below *folder*; it is made if it is not there.

    Raises LabError for a package that is not installed.
    """
    versions = Installed.read().closure(PACKAGES)
    key = hashlib.sha256(json.dumps([_FORMAT, versions]).encode()).hexdigest()[:12]
    archive = folder / f"base-{key}.tar"
    if not archive.exists():
        say(f"making the images of {len(versions)} packages")
        images = (Image(APPS, ("sleep", "infinity")), Image(PAUSE, ("sleep", "infinity")))
        with _whole(archive) as new, tempfile.TemporaryDirectory(dir=folder) as work:
            layer = Path(work) / "layer.tar"
            write_layer(layer, package_files(versions))
            write_archive(new, images, [layer])
    return archive


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Within, a path beside *path* to write to; it takes *path*'s place when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def package_files(packages: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files and folders of *packages* that an application may use, each by a path without
    symbolic links in its folder.
    """
    listed: set[str] = set()
    for name in packages:
        for suffix in ("", *(f":{each}" for each in _architectures())):
            with suppress(FileNotFoundError):
                listed.update((_DPKG / "info" / f"{name}{suffix}.list").read_text().splitlines())
    seen: set[Path] = set()
    for text in sorted(listed):
        path = Path(text)
        if text == "/." or _UNREAD.match(text) or not os.path.lexists(path):
            continue
        real = path.parent.resolve() / path.name
        if real not in seen:
            seen.add(real)
            yield real


def _architectures() -> Sequence[str]:
    path = _DPKG / "arch"
    known = path.read_text().split() if path.exists() else []
    return known or ("amd64", "arm64")


def write_layer(layer: Path, files: Iterator[Path]) -> None:
    """Write *files* as they are, and what every root needs, into the tar file *layer*."""
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in _LINKS:
            _add_link(tar, name, f"usr/{name}")
        for name, mode in _FOLDERS.items():
            _add_folder(tar, name, mode)
        for path in files:
            if len(path.parts) > 2 or path.name not in (*_LINKS, *_FOLDERS):
                tar.add(path, str(path).lstrip("/"), recursive=False)
        for name, text in _FILES.items():
            _add_file(tar, name, text.encode())


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type = tarfile.SYMTYPE
    info.linkname = target
    tar.addfile(info)


def _add_folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = mode
    tar.addfile(info)


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def write_archive(archive: Path, images: Sequence[Image], layers: Sequence[Path]) -> None:
    """Write *images*, all of the same *layers* (tar files, the lowest first), as an OCI layout."""
    blobs: dict[str, bytes] = {}

    def blob(value: object, kind: str) -> dict[str, object]:
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {
            "mediaType": f"application/vnd.oci.image.{kind}.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    files = {_digest(path): path for path in layers}
    descriptors = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": f"sha256:{digest}",
            "size": path.stat().st_size,
        }
        for digest, path in files.items()
    ]
    manifests = []
    for image in images:
        config = {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": image.command, "Env": _ENVIRONMENT},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in files]},
        }
        manifest = {"schemaVersion": 2, "config": blob(config, "config"), "layers": descriptors}
        manifests.append(blob(manifest, "manifest") | {"annotations": {"io.containerd.image.name": image.name}})
    with tarfile.open(archive, "w") as tar:
        _add_file(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add_file(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())
        for digest, data in blobs.items():
            _add_file(tar, f"blobs/sha256/{digest}", data)
        for digest, path in files.items():
            tar.add(path, f"blobs/sha256/{digest}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def identity(archive: Path) -> str:
    """Return what the images in *archive*, of OCI's or docker's kind, are known by: the same for the
    same content; raises LabError for what is no archive of images.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name in ("index.json", "manifest.json") and (file := tar.extractfile(member)):
                    return hashlib.sha256(file.read()).hexdigest()
    except (OSError, tarfile.TarError) as error:
        raise LabError(f"{archive}: cannot be read as an archive of images: {error}") from None
    raise LabError(f"{archive}: neither index.json nor manifest.json is in it: it is no archive of images (tar)")
