"""The Debian package on a machine of its own, which is this one with a file system laid over its: install,
check, run, replace, remove, purge, and what is left then.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nodeagent.lab import cgroup, linux
from tests.package.running import in_unit, ready, unit_removed
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PINS = Path("/sys/fs/bpf/nodeagent")
AGENT_YAML = "etc/nodeagent/agent.yaml"
DPKGS = ("var/lib/dpkg", "var/log", "var/cache", "run", "tmp", "root")
"""Where dpkg and its helpers note what they did."""
KEPT = {"etc/.pwd.lock", *(f"etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))}
"""What programs that change users leave beside their files, whatever they change."""


def built() -> Path:
    found = sorted((ROOT / "dist").glob("nodeagent_*.deb"))
    assert len(found) == 1, f"make deb makes one; there are: {found}"
    return found[0]


class Machine:
    """A machine whose root is *root*, and what changed on it is *upper*."""

    def __init__(self, root: Path, upper: Path) -> None:
        self.root = root
        self.upper = upper

    def argv(self, *argv: str) -> list[str]:
        return ["chroot", str(self.root), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.argv(*argv), cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done

    def changed(self) -> set[str]:
        """Return the files that are other than before, dpkg's own notes left out."""
        found = set()
        for folder, _, files in os.walk(self.upper):
            inside = [str(Path(folder, name).relative_to(self.upper)) for name in files]
            found |= {name for name in inside if not name.startswith(DPKGS) and not self._alike(name)}
        return found

    def _alike(self, name: str) -> bool:
        """Say whether the file was written and is as before."""
        before, after = Path("/", name), self.upper / name
        return before.is_file() and after.is_file() and before.read_bytes() == after.read_bytes()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """This machine, as a package manager sees it; nothing that happens there reaches it."""
    work = tmp_path_factory.mktemp("machine")
    with ExitStack() as stack:

        def mount(source: str, target: Path, kind: str = "", data: str = "", *, bound: bool = False) -> None:
            target.mkdir(exist_ok=True)
            linux.bind(source, target) if bound else linux.mount(source, target, kind, data=data)
            stack.callback(linux.unmount, target)

        mount("tmpfs", work / "memory", "tmpfs")
        upper, root = work / "memory" / "upper", work / "root"
        for folder in (upper, work / "memory" / "work"):
            folder.mkdir()
        mount("overlay", root, "overlay", f"lowerdir=/,upperdir={upper},workdir={work}/memory/work")
        for name in ("proc", "sys", "dev", "run"):
            mount(f"/{name}", root / name, bound=True)
        for path in ("/sys/fs/bpf", str(cgroup.hierarchy())):
            mount(path, Path(f"{root}{path}"), bound=True)
        yield Machine(root, upper)


def test_two_builds_have_one_hash(tmp_path: Path) -> None:
    (wheel,) = (ROOT / "dist").glob("nodeagent-*.whl")
    files = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(built())], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        epoch = str(archive.getmember(".").mtime)
    argv = [sys.executable, "-m", "package.deb.build", str(wheel), str(tmp_path)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, env=environment)
    (again,) = tmp_path.iterdir()
    assert hashlib.sha256(again.read_bytes()).hexdigest() == hashlib.sha256(built().read_bytes()).hexdigest()


def test_nothing_in_it_names_the_folder_that_it_was_built_in(tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", str(built()), str(tmp_path)], check=True)
    found = subprocess.run(["grep", "-rlF", str(ROOT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_it_is_installed_with_what_debian_has(machine: Machine) -> None:
    (machine.root / "nodeagent.deb").write_bytes(built().read_bytes())
    machine.run("dpkg", "--install", "/nodeagent.deb")
    assert machine.run("id", "-u", "nodeagent").stdout.strip() == "1337"
    where = machine.run("/usr/lib/nodeagent/bin/python", "-Ic", "import nodeagent, bcc; print(nodeagent.__file__)")
    assert where.stdout.startswith("/usr/lib/nodeagent/")
    assert machine.run("dpkg", "--verify", "nodeagent").stdout == ""


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A file system of its own on *folder*."""
    folder.mkdir()
    linux.mount("tmpfs", folder, "tmpfs")
    try:
        yield folder
    finally:
        linux.unmount(folder)


def daemons() -> list[int]:
    """Return the first processes of all daemons in this room."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes().split(b"\0")
            parents = path.with_name("stat").read_text().rpartition(")")[2].split()[1]
            if b"/usr/bin/nodeagent" in argv and int(parents) in (1, os.getpid()):
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def configured(machine: Machine) -> Iterator[None]:
    """The package's configuration, for this machine's cgroups; all daemons end afterwards."""
    file = machine.root / AGENT_YAML
    given = file.read_text()
    file.write_text(given.replace("/sys/fs/cgroup", str(cgroup.hierarchy())))
    try:
        yield
    finally:
        for pid in daemons():
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: [cgroup.reap(pid) for pid in daemons()] == [], "all have ended")
        unit_removed()
        file.write_text(given)


@pytest.mark.usefixtures("configured")
def test_a_check_finds_what_the_agent_needs(machine: Machine) -> None:
    found = json.loads(machine.run("nodeagent", "check", "-o", "json").stdout)
    assert [row for row in found if row["state"] == "missing"] == []


@pytest.mark.usefixtures("configured")
def test_it_runs_as_configured_and_a_new_one_takes_over(machine: Machine) -> None:
    """Input: then a wrong configuration, then a right one, each as a reload brings it. Verdict: of the
    wrong one the error alone is seen; with the right one another daemon has the node.
    """
    with subprocess.Popen(in_unit(machine.argv("nodeagent", "run")), cwd="/") as running:
        assert eventually(lambda: ready() or running.poll() is not None) and running.poll() is None
        assert (PINS / "links").is_dir()
        (machine.root / "tmp/wrong.yaml").write_text("sauce: /tmp\n")
        wrong = ("nodeagent", "run", "--replace", "-c", "/tmp/wrong.yaml")
        done = subprocess.run(in_unit(machine.argv(*wrong)), cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "sauce" in done.stderr
        assert running.poll() is None and ready()
        subprocess.run(in_unit(machine.argv("nodeagent", "run", "--replace")), cwd="/", check=True)
        assert running.wait(60) == 0
        assert ready()


def test_nothing_stays_of_one_that_is_purged(machine: Machine) -> None:
    """Input: a configuration that does not load by then; a mount in its folder. Verdict: the kernel is left all the
    same, and what is mounted stays as it is.
    """
    assert PINS.is_dir()  # as a daemon leaves them that has ended
    (machine.root / AGENT_YAML).write_text("sauce: /tmp\n")
    machine.run("dpkg", "--remove", "nodeagent")
    assert not PINS.exists()
    assert (machine.root / AGENT_YAML).exists()
    folder = machine.root / "var/lib/nodeagent"
    with mounted(folder / "mesh/shared") as shared:
        (shared / "theirs").touch()
        said = machine.run("dpkg", "--purge", "nodeagent").stderr
        assert (shared / "theirs").exists()
        assert "mesh/shared is a mount" in said
        assert [path.name for path in folder.iterdir()] == ["mesh"]
    shutil.rmtree(folder)
    (machine.root / "nodeagent.deb").unlink()
    assert machine.changed() - KEPT == set()
    for file in ("passwd", "group"):
        assert "nodeagent" not in (machine.root / "etc" / file).read_text()
    assert not any(Path("/run").glob("nodeagent*"))


def test_a_user_that_is_somebody_elses_is_not_shared(machine: Machine) -> None:
    machine.run("useradd", "--uid", "1337", "--no-create-home", "somebody")
    (machine.root / "nodeagent.deb").write_bytes(built().read_bytes())
    install = machine.argv("dpkg", "--install", "/nodeagent.deb")
    done = subprocess.run(install, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "1337 is somebody's already" in done.stderr
