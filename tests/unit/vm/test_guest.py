"""What the nodes of the VM lab are told of its pods: the agent's own readers take it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.resources import object_file
from nodeagent.resources.marks import is_mark
from nodeagent.resources.objects import PodObject, ServiceObject

VAGRANT = Path(__file__).parents[3] / "vagrant"


@pytest.fixture(scope="module")
def pods() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pods", VAGRANT / "guest" / "pods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pods"] = module
    spec.loader.exec_module(module)
    return module


def test_every_object_is_read_by_the_agent(pods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-a")
    pods.objects(tmp_path)
    found = {}
    for path in (tmp_path / "objects").iterdir():
        change = object_file.read(path).change
        if change is not None and isinstance(change.object, PodObject):
            found[change.object.name] = change.object
    assert set(found) == {name for name, pod in pods.PODS.items() if not pod.service}
    for name, pod in found.items():
        place = AnnotationPlaces().of(pod)
        assert place is not None
        assert place.netns == f"/run/netns/{name}"
        assert place.cgroup == f"/sys/fs/cgroup/kubepods.slice/pod@{name}.service"
        assert pod.addresses == pods.PODS[name].addresses
        assert pod.ready


def test_the_kernel_path_finds_the_service_of_its_pod(
    pods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-a")
    pods.objects(tmp_path)
    change = object_file.read(tmp_path / "objects" / "Service.lab.near.json").change
    assert change is not None
    assert isinstance(change.object, ServiceObject)
    assert change.object.addresses == (pods.CLUSTER_IP,)
    assert change.object.selector == pods.PODS["near"].object()["metadata"]["labels"]


def test_systemd_understands_every_unit_of_the_lab(tmp_path: Path) -> None:
    """A template by an instance of it; their program is one that is on this machine."""
    guest = VAGRANT / "guest"
    texts = {path.name: path.read_text() for path in guest.glob("*.service")}
    texts["nodeagent.service"] = (VAGRANT.parent / "package" / "nodeagent.service").read_text()
    texts["nodeagent.service.d/lab.conf"] = (guest / "nodeagent.conf").read_text()
    (tmp_path / "nodeagent.service.d").mkdir()
    for name, text in texts.items():
        for program in ("/opt/nodeagent-lab/pods.py", "/usr/bin/nodeagent"):
            text = text.replace(program, sys.executable)
        (tmp_path / name).write_text(text)
    units = sorted(name.replace("@.", "@near.") for name in texts if name.endswith(".service"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_pods_of_other_nodes_get_a_mark(pods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-b")
    pods.objects(tmp_path)
    marks = {path.name for path in (tmp_path / "enrolled").iterdir()}
    assert marks == {"lab-client", "lab-near"}
    assert all(is_mark(mark) for mark in marks)


def test_the_vagrantfile_has_the_addresses_of_the_pods_script(pods: ModuleType) -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    for node, number in pods.NODES.items():
        assert f'"{node}" => {10 + number}' in text


@pytest.mark.parametrize(
    ("interpreter", "name"),
    [(("ruby", "-wc"), "Vagrantfile"), *((("bash", "-n"), name) for name in ("box.sh", "compare.sh", "provision.sh"))],
)
def test_what_makes_the_lab_is_read_by_its_interpreter(interpreter: tuple[str, ...], name: str) -> None:
    done = subprocess.run([*interpreter, VAGRANT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.box", "jessie"], "KERNEL: jessie: allowed: bookworm, bullseye, bookworm-backports, trixie"),
        (["/nowhere/a.box"], "/nowhere"),
    ],
)
def test_the_box_script_refuses_what_it_cannot_do(words: list[str], said: str) -> None:
    done = subprocess.run([VAGRANT / "box.sh", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
