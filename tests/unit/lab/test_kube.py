"""What a cluster of the lab is made of, as far as it is pure: names, images, what components are told."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from nodeagent.errors import LabError
from nodeagent.lab.kube import config, construction, images
from nodeagent.lab.kube.images import Image, Installed, identity, write_archive
from nodeagent.lab.kube.layout import MAX_NODES, KubeLayout, KubeNode, built, state_file

STATUS = """Package: app
Status: install ok installed
Version: 2
Depends: libc (>= 1), other | libother:any, virtual
Pre-Depends: pre

Package: libc
Status: install ok installed
Version: 1
Description: the library
 Depends: nothing

Package: libother
Status: install ok installed
Version: 3
Provides: unasked

Package: real
Status: install ok installed
Version: 4
Provides: something, virtual (= 4)

Package: pre
Status: install ok installed
Version: 5

Package: other
Status: deinstall ok config-files
Version: 6
"""


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    (tmp_path / "status").write_text(STATUS)
    return Installed.read(tmp_path / "status")


def test_a_package_comes_with_all_it_depends_on(installed: Installed) -> None:
    assert installed.closure(["app"]) == {"app": "2", "libc": "1", "libother": "3", "pre": "5", "real": "4"}


def test_what_is_not_installed_is_named(installed: Installed) -> None:
    with pytest.raises(LabError, match="apt-get install other nobody"):
        installed.closure(["app", "other", "nobody"])


def test_no_dpkg_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="images are made of Debian's packages"):
        Installed.read(tmp_path / "status")


def test_an_archive_is_known_by_its_content(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(__file__, "a", recursive=False)
    names = []
    for name, command in (("one", "a"), ("same", "a"), ("other", "b")):
        write_archive(tmp_path / name, [Image("x:1", [command]), Image("y:1", ["c"])], [layer])
        names.append(identity(tmp_path / name))
    assert names[0] == names[1] != names[2]
    with tarfile.open(tmp_path / "one") as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        manifests = json.load(index)["manifests"]
        assert [each["annotations"]["io.containerd.image.name"] for each in manifests] == ["x:1", "y:1"]
        for each in manifests:
            assert tar.getmember(f"blobs/sha256/{each['digest'].removeprefix('sha256:')}").size == each["size"]


@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 10240])
def test_what_is_no_archive_of_images_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(content)
    with pytest.raises(LabError, match=r"image\.tar: .*archive of images"):
        identity(tmp_path / "image.tar")


def test_an_image_has_what_a_root_needs(tmp_path: Path) -> None:
    images.write_layer(tmp_path / "layer.tar", iter([Path("/usr/bin/env"), Path("/run"), Path("/bin")]))
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getmember("bin").linkname == "usr/bin"
        assert {"usr/bin/env", "etc/passwd", "tmp", "proc"} <= set(tar.getnames())
        assert len(tar.getnames()) == len(set(tar.getnames()))


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "a" * 33, "a/b", ".."])
def test_a_name_that_could_be_taken_for_a_path_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="--name"):
        state_file(name)


def test_nothing_built_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LabError, match="make kube"):
        built()


def test_nodes_have_ranges_of_their_own() -> None:
    nodes = [KubeNode(number) for number in range(1, MAX_NODES + 1)]
    assert nodes[-1].name == "node-i"
    for index, own in enumerate(nodes):
        for other in nodes[index + 1 :]:
            assert not own.pods[0].overlaps(other.pods[0])
            assert not own.pods[1].overlaps(other.pods[1])
            assert not set(own.addresses) & set(other.addresses)


def test_groups_are_told_apart_by_the_folder() -> None:
    here, there = KubeLayout("same", Path("/x/nodeagent-kube-1")), KubeLayout("same", Path("/x/nodeagent-kube-2"))
    assert here.cgroup(Path("/c"), "node-a") == Path("/c/kube-1-node-a")
    assert here.cgroup(Path("/c"), "node-a") != there.cgroup(Path("/c"), "node-a")


@pytest.mark.parametrize("cni", ["ptp", "bridge"])
def test_pods_have_an_address_of_each_family(cni: config.Cni) -> None:
    plugin = json.loads(config.network_file(cni, KubeNode(2)))["plugins"][0]
    assert plugin["type"] == cni
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.88.2.0/24"}], [{"subnet": "fd00:88:0:2::/64"}]]


def test_a_removal_that_was_broken_off_is_one_that_the_next_sweep_takes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: a part that cannot be removed at first. Verdict: the lock, by which a sweep knows what it may remove,
    is there until everything else has gone.
    """
    folder = tmp_path / "cluster"
    (folder / "node-a" / "kubelet").mkdir(parents=True)
    (folder / "lock").touch()
    remove = shutil.rmtree

    def busy(path: Path, *arguments: object, **named: object) -> None:
        if path == folder / "node-a":
            raise OSError(errno.EBUSY, "mounted")
        remove(path)

    monkeypatch.setattr(construction, "_REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.raises(LabError, match="cannot be removed"):
        construction._remove_folder(folder)
    assert (folder / "lock").exists()
    monkeypatch.setattr(shutil, "rmtree", remove)
    construction._remove_folder(folder)
    assert not folder.exists()
