"""The Debian package, the same bytes for the same input.

usage: python -m package.deb.build WHEEL FOLDER

What Debian has is depended upon; the Python packages that it has not, or not as new, stand with the
agent in a virtual environment that is nobody else's (/usr/lib/nodeagent: a link to Debian's Python and a folder of
packages, as venv makes them), in the versions that the agent is tested with. No script of the package
downloads anything.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from daemonset.image import build as image
from nodeagent import __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = "usr/lib/nodeagent"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"{HOME}/lib/{PYTHON}/site-packages"
CONFIGURATION = ("etc/nodeagent/agent.yaml", "etc/apparmor.d/nodeagent")
"""What dpkg leaves to whoever changed it."""
COMMAND = f"""#!/{HOME}/bin/python -I
import sys
from nodeagent.cli.main import main
sys.exit(main())
"""
ENVIRONMENT = f"""home = /usr/bin
include-system-site-packages = true
version = {sys.version_info.major}.{sys.version_info.minor}
"""
CONTROL = """Package: nodeagent
Version: {version}
Architecture: {architecture}
Maintainer: nodeagent's authors <nodeagent@localhost>
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {next_python}), python3-cryptography, libc6 (>= {libc}), libstdc++6,
 libzstd1, liblz4-1, passwd
Recommends: python3-bpfcc, apparmor
Section: net
Priority: optional
Description: service mesh's sidecars, once per machine
 eBPF captures what pods and services of this machine send and receive; one shared proxy gives them
 mutual TLS, Istio's policies, metrics and access logs, and delivers their logs.
 .
 python3-bpfcc compiles the eBPF programs anew where those of this package are not used.
"""


def debian_version(version: str) -> str:
    """Return *version* (PEP 440) as dpkg sorts it: 1.0rc1 comes before 1.0, which ``~`` says."""
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", version)


def fill(root: Path, wheel: Path, cache: Path) -> None:
    """Put everything but the control files below *root*."""
    site = root / SITE
    packages(site, cache)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for library in site.rglob("*.so"):
        image.run("strip", "--strip-unneeded", library)
    prune(site)
    image.precompile(site, root)
    image.link(root / HOME / "bin/python", "/usr/bin/python3")
    image.write(root, f"{HOME}/pyvenv.cfg", ENVIRONMENT)
    image.write(root, "usr/bin/nodeagent", COMMAND)
    (root / "usr/bin/nodeagent").chmod(0o755)
    for source, target in (
        ("package/agent.yaml", "etc/nodeagent/agent.yaml"),
        ("package/agent.yaml", f"{HOME}/agent.yaml"),
        ("package/nodeagent.apparmor", "etc/apparmor.d/nodeagent"),
        ("package/nodeagent.service", "usr/lib/systemd/system/nodeagent.service"),
        ("docs/agent.yaml", "usr/share/doc/nodeagent/examples/agent.yaml"),
        ("README.md", "usr/share/doc/nodeagent/README.md"),
        ("LICENSE", "usr/share/doc/nodeagent/copyright"),
    ):
        image.write(root, target, (ROOT / source).read_text())
    (root / "etc/nodeagent/policies").mkdir()
    changes = gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0)
    (root / "usr/share/doc/nodeagent/changelog.gz").write_bytes(changes)


def packages(site: Path, cache: Path) -> None:
    """Put the Python packages that the agent needs into *site*; they are those of the image, kept in *cache*."""
    layer = image.layer("python", image.dependencies, image.requirements(), cache)
    with tempfile.TemporaryDirectory(prefix="nodeagent-deb-") as folder:
        with tarfile.open(layer.file) as archive:
            archive.extractall(folder)
        site.parent.mkdir(parents=True)
        shutil.move(Path(folder, image.SITE), site)


def prune(site: Path) -> None:
    """Remove bytecode that was compiled for another place, and what pip notes of the machine that it ran on."""
    for name in ("__pycache__", "INSTALLER", "REQUESTED", "direct_url.json"):
        for path in list(site.rglob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def control(root: Path) -> None:
    """Write the control files of what is below *root*."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    minor = sys.version_info.minor
    folder = root / "DEBIAN"
    folder.mkdir()
    said = CONTROL.format(
        version=debian_version(__version__),
        architecture=image.run("dpkg", "--print-architecture", output=True).strip(),
        size=sum(path.stat().st_size for path in files) // 1024,
        python=f"3.{minor}~",
        next_python=f"3.{minor + 1}~",
        libc=os.confstr("CS_GNU_LIBC_VERSION").split()[1],  # type: ignore[union-attr]
    )
    (folder / "control").write_text(said)
    (folder / "conffiles").write_text("".join(f"/{name}\n" for name in CONFIGURATION))
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files)
    (folder / "md5sums").write_text("".join(sums))
    for name in ("postinst", "prerm", "postrm"):
        shutil.copy(HERE / name, folder / name)
        (folder / name).chmod(0o755)


def epoch() -> int:
    """Return the time that everything in the package has: of the last commit, unless SOURCE_DATE_EPOCH says another."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or image.run("git", "-C", ROOT, "log", "-1", "--format=%ct", output=True))


def settle(root: Path, when: int) -> None:
    """Give everything below *root* one owner's modes, and one time."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def main() -> None:
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if why := image.refusal(wheel):
        sys.exit(f"no package: {why}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    when = epoch()
    with tempfile.TemporaryDirectory(prefix="nodeagent-deb-") as work:
        root = Path(work, "root")
        root.mkdir()
        fill(root, wheel, home / "nodeagent" / "image")
        control(root)
        settle(root, when)
        folder.mkdir(parents=True, exist_ok=True)
        build = ("dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", str(root), str(folder))
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(when)})
    for package in sorted(folder.glob("nodeagent_*.deb")):
        print(f"{package} ({package.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
