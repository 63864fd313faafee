"""The wheel and the sources' archive of `make wheel`, outside of a checkout."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from nodeagent.lab import cgroup
from tests.package.running import in_unit, ready, unit_removed
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BUILDS_IMAGE = ("daemonset/image/build.py",)
"""What is for a checkout alone."""
DEBIAN_PYTHON = "/usr/bin/python3"


def one(pattern: str) -> Path:
    found = sorted((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"make wheel makes one; there are: {found}"
    return found[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is no checkout, with a virtual environment that has the wheel. What that needs is what
    `make setup` installed: a room has no network.
    """
    folder = tmp_path_factory.mktemp("outside")
    subprocess.run([DEBIAN_PYTHON, "-m", "venv", "--system-site-packages", folder / "venv"], check=True)
    (site,) = folder.glob("venv/lib/*/site-packages")
    (site / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = (folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--no-index", "--no-deps", one("nodeagent-*.whl")], check=True, cwd=folder)
    return folder


def argv(folder: Path, *words: str) -> list[str]:
    return ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", str(folder / "venv/bin/nodeagent"), *words]


def test_a_check_needs_no_checkout(installed: Path) -> None:
    done = subprocess.run(argv(installed, "check", "-o", "json"), cwd=installed, capture_output=True, check=False)
    assert [row for row in json.loads(done.stdout) if row["state"] == "missing"] == []
    assert done.returncode == 0


def test_a_daemon_needs_no_checkout(installed: Path) -> None:
    (installed / "mesh" / "objects").mkdir(parents=True)
    settings = {
        "source": str(installed / "mesh"),
        "redirect": {"cgroup": str(cgroup.hierarchy())},
        "identity": {"caDirectory": str(installed / "ca")},
    }
    (installed / "agent.yaml").write_text(yaml.safe_dump(settings))
    command = argv(installed, "run", "-c", str(installed / "agent.yaml"))
    try:
        with subprocess.Popen(in_unit(command), cwd=installed) as running:
            assert eventually(lambda: ready() or running.poll() is not None) and running.poll() is None
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
        done = subprocess.run(argv(installed, "uninstall", "-c", "agent.yaml"), cwd=installed, check=False)
        assert done.returncode == 0
    finally:
        unit_removed()


def test_an_installation_on_a_cluster_needs_no_checkout(installed: Path) -> None:
    """Verdict: the manifests that came with the package are what is rendered, by whatever kubectl there is."""
    tools = installed / "tools"
    tools.mkdir()
    kubectl = tools / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\nset -e\ncd "$2"; cat ../../base/agent.yaml >&2\necho "{kind: Folder, metadata: {name: $PWD}}"\n'
    )
    kubectl.chmod(0o755)
    command = argv(installed, "install", "--dry-run", "--overlay", "minimal")
    command[2] = f"PATH={tools}:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = [each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout)]
    assert Path(folder).is_relative_to(installed / "venv")
    assert folder.endswith("/nodeagent/daemonset/overlays/minimal")


def test_the_wheel_brings_what_is_no_module() -> None:
    with zipfile.ZipFile(one("nodeagent-*.whl")) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    beside = [name for name in tracked if name.startswith("bpf/")]
    beside += [name for name in tracked if name.startswith("daemonset/") and name not in BUILDS_IMAGE]
    assert {f"nodeagent/{name}" for name in beside} <= names
    assert {name for name in tracked if name.startswith("nodeagent/")} <= names
    assert "nodeagent/bpf/programs.json" in names


def test_nothing_in_the_wheel_names_the_folder_that_it_was_built_in() -> None:
    with zipfile.ZipFile(one("nodeagent-*.whl")) as archive:
        named = [name for name in archive.namelist() if os.fsencode(ROOT) in archive.read(name)]
    assert named == []


def test_the_archive_of_the_sources_is_what_is_committed() -> None:
    with tarfile.open(one("nodeagent-*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert names == {*tracked, "PKG-INFO"}


def test_the_version_stands_once() -> None:
    said = re.findall(r'^__version__ = "(.*)"$', (ROOT / "nodeagent" / "__init__.py").read_text(), re.MULTILINE)
    assert len(said) == 1
    assert one("nodeagent-*.whl").name.startswith(f"nodeagent-{said[0]}-")
    assert one("nodeagent-*.tar.gz").name == f"nodeagent-{said[0]}.tar.gz"
