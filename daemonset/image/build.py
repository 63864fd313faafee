"""The agent's image, without a daemon and without a registry: an OCI archive, the same bytes for
the same input.

usage: build.py WHEEL ARCHIVE NAME [CACHE]

Three layers, of which only the last is made for a change of the agent: Debian's packages, as apt
resolves and verifies them for this release, unpacked and not configured (no package manager, no
perl, no shell but busybox); the Python packages that the agent needs, in the versions that it is
tested with; the wheel. The first two are kept in CACHE by what they are made of. No compiler is
among it: the wheel brings BPF programs and modules compiled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nodeagent.redirect import precompiled

PACKAGES = (
    *("python3", "python3-cryptography", "libstdc++6", "libzstd1", "liblz4-1"),
    *("iptables", "iproute2", "busybox", "ca-certificates"),
)
"""libstdc++ is for grpc, libzstd and liblz4 for values of the journal; iptables and iproute2 for `nodeagent
sidecar-init`; ip and a shell for people.
"""
LEFT_OUT = ("dpkg", "tar", "debconf", "gcc-12-base", "readline-common", "libtirpc-common", "openssl")
"""Of what those depend on: needed only to configure packages."""
PROGRAMS = f"nodeagent/bpf/{precompiled.FILE}"
"""In the wheel."""
SITE = "usr/local/lib/python3.11/dist-packages"
UNUSED = re.compile(
    r"usr/share/(doc|man|locale|info|lintian|debconf|bug|python3/debpython|applications|pixmaps|menu|binfmts)(/|$)"
    r"|usr/lib/python3\.11/(test|idlelib|lib2to3|ensurepip|tkinter|turtledemo|pydoc_data|config-[^/]*)(/|$)"
    r"|usr/lib/tc/|usr/lib/[^/]*/(gconv|perl[^/]*)(/|$)|usr/include(/|$)|etc/(init\.d|cron[^/]*)(/|$)"
    r"|(?!.*/nodeagent/)(.*/(tests?|testing)(/|$)|.*\.(pyx|pxd|pyi|c|h|cc|cpp|a|la)$)"
)
MADE_UP = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nproxy:x:1337:1337:nodeagent:/nonexistent:/bin/false\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nproxy:x:1337:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
    "usr/local/bin/nodeagent": "#!/usr/bin/python3\nfrom nodeagent.cli.main import main\nmain()\n",
}
FOLDERS = ("root", "run", "tmp", "proc", "sys", "dev", "var/lib/nodeagent", "etc/nodeagent")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
LEVEL = 6
"""Of gzip: 9 takes thrice as long for a hundredth."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A gzipped tar. *plain*: SHA-256 of the tar itself, which the image's configuration names."""

    file: Path
    plain: str


def run(*argv: str | Path, output: bool = False) -> str:
    """Run a command; it fails loudly, or its output is returned."""
    done = subprocess.run(
        [str(each) for each in argv], check=True, text=True, stdout=subprocess.PIPE if output else None
    )
    return done.stdout if output else ""


# -- the first layer: Debian's packages --


def apt(*options: str) -> tuple[str, ...]:
    """Return apt-get's command line for a system on which nothing is installed."""
    nothing = ("Dir::State::status=/dev/null", "APT::Install-Recommends=false")
    settings = (*nothing, "Debug::NoLocking=1", "APT::Sandbox::User=root", *options)
    return ("apt-get", "--quiet=2", "--yes", *(f"--option={setting}" for setting in settings))


def wanted() -> list[str]:
    """Return the packages with versions that apt would install, as it names their files."""
    resolve = (*apt(), "--print-uris", "install", *PACKAGES)
    try:
        lines = run(*resolve, output=True).splitlines()
    except subprocess.CalledProcessError:  # a machine that has never asked which packages there are
        run("apt-get", "--quiet=2", "update")
        lines = run(*resolve, output=True).splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("'"))


def unpack_packages(root: Path, work: Path) -> None:
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    run(*apt(f"Dir::Cache::archives={archives}"), "--download-only", "install", *PACKAGES)
    status = []
    for package in sorted(archives.glob("*.deb")):
        if package.name.partition("_")[0] not in LEFT_OUT:
            run("dpkg-deb", "--extract", package, root)
            control = run("dpkg-deb", "--field", package, output=True)
            name, _, rest = control.partition("\n")
            status.append(f"{name}\nStatus: install ok installed\n{rest}")
    # what scanners of images look for
    write(root, "var/lib/dpkg/status", "\n".join(status))


def configure(root: Path) -> None:
    """Do what the packages' own scripts would have done."""
    for name, text in MADE_UP.items():
        write(root, name, text)
    (root / "usr/local/bin/nodeagent").chmod(0o755)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    roots = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    write(root, CERTIFICATES, "".join(path.read_text() for path in roots))
    link(root / "usr/lib/ssl/cert.pem", f"/{CERTIFICATES}")
    for prefix in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            link(root / f"usr/sbin/{prefix}{suffix}", "xtables-nft-multi")
    for applet in run(root / "bin/busybox", "--list", output=True).split():
        if not any(os.path.lexists(root / folder / applet) for folder in ("bin", "sbin", "usr/bin", "usr/sbin")):
            link(root / "usr/bin" / applet, "/bin/busybox")
    link(root / "bin/sh", "busybox")
    link(root / "var/run", "/run")  # by which the container runtime names network namespaces


def debian(root: Path, work: Path) -> None:
    unpack_packages(root, work)
    configure(root)
    precompile(root / "usr/lib/python3.11", root)
    precompile(root / "usr/lib/python3/dist-packages", root)


# -- the second layer: Python packages --


def requirements() -> list[str]:
    """Return what the agent needs at run time, as it is installed here, where it is tested; Debian's
    own packages are in the first layer.
    """
    found: dict[str, str] = {}
    asked = [Requirement(each) for each in metadata.requires("nodeagent") or ()]
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if (
            name in found
            or name == "cryptography"
            or (requirement.marker and not requirement.marker.evaluate({"extra": ""}))
        ):
            continue
        installed = metadata.distribution(name)
        found[name] = installed.version
        asked += [Requirement(each) for each in installed.requires or ()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def dependencies(root: Path, work: Path) -> None:
    site = root / SITE
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
        "--no-deps",
        "--no-compile",
    )
    run(*pip, "--target", site, *requirements())
    shutil.rmtree(site / "bin", ignore_errors=True)
    for library in site.rglob("*.so*"):
        run("strip", "--strip-unneeded", library)
    precompile(site, root)


# -- the third layer: the agent --


def refusal(wheel: Path) -> str:
    """Return why no image is made of *wheel*; empty: one is. The image has no compiler, so without
    BPF programs, compiled from the very sources that the wheel brings, no agent would start.
    """
    compile_them = f"`make image` compiles them, as root; `rm bpf/{precompiled.FILE}` first to compile anew"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(prefix="nodeagent-image-") as folder:
        if PROGRAMS not in archive.namelist():
            return f"{wheel} has no BPF programs ({PROGRAMS}), and the image no compiler: {compile_them}"
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("nodeagent/bpf/")])
        file = Path(folder, PROGRAMS)
        if json.loads(file.read_bytes())["sources"] != precompiled.digest(file.parent):
            return f"{wheel}: {PROGRAMS} is not of the C sources beside it: {compile_them}"
    return ""


def agent(wheel: Path) -> Callable[[Path, Path], None]:
    def fill(root: Path, work: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / SITE)
        for library in (root / SITE).rglob("*.so"):
            run("strip", "--strip-unneeded", library)
        precompile(root / SITE, root)

    return fill


# -- layers, and the archive --


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def precompile(folder: Path, root: Path) -> None:
    """Compile to bytecode that never looks at its source's time: the root file system is read-only,
    and an image's times are all the same.
    """
    skip = r"/(tests?|testing|idlelib|lib2to3|ensurepip|tkinter|turtledemo|pydoc_data)/"
    modes = ("--invalidation-mode", "unchecked-hash")
    run(sys.executable, "-m", "compileall", "-q", "-x", skip, *modes, "-s", root, "-p", "/", folder)


def members(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield what belongs into the layer, in an order that is always the same."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            inside = str(path.relative_to(root))
            # the bytecode that was made here, unlike what tests and packages bring
            bytecode = inside.replace("/__pycache__", "")
            if not UNUSED.match(bytecode):
                yield path, inside


def tar(root: Path, file: Path) -> str:
    """Write all below *root* as a gzipped tar, owned by root and without times; return the tar's SHA-256."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, inside in members(root):
            entry = archive.gettarinfo(path, inside)
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if inside != "tmp":
                entry.mode &= 0o755  # nobody but root writes, and nothing runs as somebody else
            if entry.isreg():
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)
    data = plain.getvalue()
    file.write_bytes(gzip.compress(data, LEVEL, mtime=0))
    return hashlib.sha256(data).hexdigest()


def layer(what: str, fill: Callable[[Path, Path], None], key: Sequence[str], cache: Path) -> Layer:
    """Return the layer that *fill* makes, of which *key* says everything that it depends on."""
    name = hashlib.sha256("\n".join([Path(__file__).read_text(), *key]).encode()).hexdigest()[:16]
    file, plain = cache / f"{what}-{name}.tar.gz", cache / f"{what}-{name}.sha256"
    if not plain.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="nodeagent-image-") as folder:
            root, work = Path(folder, "root"), Path(folder, "work")
            root.mkdir()
            work.mkdir()
            fill(root, work)
            made = tar(root, fresh := Path(folder, "layer"))
            shutil.move(fresh, file)
        plain.write_text(made)
    print(f"{what:8} {file.stat().st_size / 1e6:6.1f} MB gzipped")
    return Layer(file, plain.read_text())


def configuration(layers: Sequence[Layer], version: str) -> bytes:
    labels = {
        "org.opencontainers.image.title": "nodeagent",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.description": str(metadata.metadata("nodeagent")["Summary"]),
    }
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = {"Env": [f"PATH={path}", "PYTHONUNBUFFERED=1"], "Entrypoint": ["nodeagent"], "Labels": labels}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{each.plain}" for each in layers]}
    return json.dumps({"architecture": machine, "os": "linux", "config": config, "rootfs": rootfs}).encode()


def archive(layers: Sequence[Layer], version: str, name: str, file: Path) -> None:
    """Write an OCI archive (image-spec: image-layout), which `docker load` reads too."""
    media = "application/vnd.oci.image"
    config = configuration(layers, version)
    blobs = {hashlib.sha256(config).hexdigest(): config}
    described = []
    for each in layers:
        data = each.file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        described.append({"mediaType": f"{media}.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": len(data)})
    first = {"mediaType": f"{media}.config.v1+json", "digest": f"sha256:{next(iter(blobs))}", "size": len(config)}
    kind = f"{media}.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": first, "layers": described}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    blobs[digest] = manifest
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    entry = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(manifest), "annotations": names}
    old = {
        "Config": f"blobs/{first['digest'].replace(':', '/')}",
        "RepoTags": [name],
        "Layers": [f"blobs/{str(each['digest']).replace(':', '/')}" for each in described],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        "manifest.json": json.dumps([old]).encode(),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    fresh = file.with_name(f"{file.name}.new")
    with tarfile.open(fresh, "w") as out:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    fresh.rename(file)


def main() -> None:
    wheel, file, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if why := refusal(wheel):
        sys.exit(f"no image: {why}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(sys.argv[4]) if len(sys.argv) > 4 else home / "nodeagent" / "image"
    layers = (
        layer("debian", debian, wanted(), cache),
        layer("python", dependencies, requirements(), cache),
        layer("agent", agent(wheel), [hashlib.sha256(wheel.read_bytes()).hexdigest()], cache),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    archive(layers, metadata.version("nodeagent"), name, file)
    print(f"{name}: {file} ({file.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
