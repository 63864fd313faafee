"""Where pods' cgroups are, by folders that look like each kind of node's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent.errors import ConfigError
from nodeagent.places.cgroups import (
    Cgroup2Mount,
    cgroup2_mounts,
    kernel_lines,
    pod_cgroup,
    pod_path,
    pods_root,
    slice_path,
)

UID = "0f9b5a1c-7d7a-4a3c-9a55-2f0f6f6f6f6f"
WITH_LINES = UID.replace("-", "_")
V1 = "35 29 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def mounted(point: Path, root: str = "/") -> str:
    return f"36 29 0:32 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"


def made(top: Path, *names: str) -> Path:
    for name in names:
        (top / name).mkdir(parents=True)
    return top


def test_mounts_of_cgroup2_are_told_from_others() -> None:
    table = V1 + mounted(Path("/sys/fs/cgroup/unified")) + mounted(Path("/with\\040blank"), "/../..")
    assert cgroup2_mounts(table) == (
        Cgroup2Mount(Path("/sys/fs/cgroup/unified"), "/"),
        Cgroup2Mount(Path("/with blank"), "/../.."),
    )


def test_names_in_proc_may_hold_what_is_no_text(tmp_path: Path) -> None:
    """Input: a mount point that is not UTF-8, and cgroups of which Python would make two lines. Verdict: one line each,
    and the very path.
    """
    file = tmp_path / "mountinfo"
    odd = mounted(Path("/run/Daten_X/cgroup")).encode().replace(b"X", b"\xfc")
    file.write_bytes(odd + mounted(Path("/a\u20280::/kubepods\x0b\x85b")).encode())
    assert [mount.point for mount in cgroup2_mounts("\n".join(kernel_lines(file)))] == [
        Path(os.fsdecode(b"/run/Daten_\xfc/cgroup")),
        Path("/a\u20280::/kubepods\x0b\x85b"),
    ]
    assert len(kernel_lines(file)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "kubepods",
        "kubepods.slice",
        "kubelet/kubepods",
        "kubelet.slice/kubelet-kubepods.slice",
        "system.slice/docker-1/kubelet/kubepods",
    ],
)
def test_the_pods_root_is_found(tmp_path: Path, name: str) -> None:
    """Drivers cgroupfs and systemd, a kubelet with a cgroupRoot; four levels down it is not looked for."""
    made(tmp_path, name, "system.slice/ssh.service", "user.slice", f"{name}/burstable/pod1/kubepods")
    if name.count("/") > 2:
        with pytest.raises(ConfigError, match=r"neither kubepods nor kubepods\.slice is within 3 cgroups of"):
            pods_root(mounted(tmp_path))
    else:
        assert pods_root(V1 + mounted(tmp_path)) == tmp_path / name


def test_of_several_the_one_with_processes_is_meant(tmp_path: Path) -> None:
    """Input: a node whose cgroup driver was changed, which leaves the other driver's root behind."""
    made(tmp_path, "kubepods", "kubepods.slice")
    with pytest.raises(ConfigError, match=r"which of .*kubepods, .*set it in agent\.yaml"):
        pods_root(mounted(tmp_path))
    (tmp_path / "kubepods" / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    (tmp_path / "kubepods.slice" / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert pods_root(mounted(tmp_path)) == tmp_path / "kubepods.slice"


def test_a_second_mount_may_be_the_nodes(tmp_path: Path) -> None:
    """Input: a container with a cgroup namespace: its own tree is mounted first, and holds no pods."""
    made(tmp_path, "own/init", "host/kubepods")
    table = mounted(tmp_path / "own") + mounted(tmp_path / "host", "/../..")
    assert pods_root(table) == tmp_path / "host" / "kubepods"


def test_without_cgroup2_that_is_said() -> None:
    with pytest.raises(ConfigError, match="only cgroup v1, to which BPF cannot be attached"):
        pods_root(V1)
    with pytest.raises(ConfigError, match="mount the node's /sys/fs/cgroup into the agent's pod"):
        pods_root("22 1 0:20 / /proc rw - proc proc rw\n")


@pytest.mark.parametrize(
    ("said", "path"),
    [
        (f"/kubepods/burstable/pod{UID}/5af1", f"/kubepods/burstable/pod{UID}"),
        (f"/kubepods/pod{UID}/crio-5af1", f"/kubepods/pod{UID}"),
        (
            f"kubepods-besteffort-pod{WITH_LINES}.slice:cri-containerd:5af1",
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{WITH_LINES}.slice",
        ),
        (
            f"kubelet-kubepods-pod{WITH_LINES}.slice:crio:5af1",
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{WITH_LINES}.slice",
        ),
        ("/5af1", ""),
        ("kubepods/podx/5af1", ""),
        ("/kubepods/../../etc/x", ""),
        ("/kubepods/\0/x", ""),
        ("a/b.slice:x:y", ""),
        ("notaslice:x:y", ""),
        ("", ""),
    ],
)
def test_a_pods_cgroup_is_the_one_above_its_containers(said: str, path: str) -> None:
    assert pod_path(said) == path


def test_a_slice_lies_in_those_whose_names_it_begins_with() -> None:
    assert slice_path("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


def test_a_pods_cgroup_is_looked_for_where_the_runtime_says(tmp_path: Path) -> None:
    root = made(tmp_path, f"kubepods/burstable/pod{UID}") / "kubepods"
    there = str(root / f"burstable/pod{UID}")
    assert pod_cgroup(root, f"/kubepods/burstable/pod{UID}/5af1", UID) == there
    assert pod_cgroup(root, "", UID) == there, "by the kubelet's name for it"
    assert pod_cgroup(root, f"/elsewhere/pod{UID}/5af1", UID) == there
    assert pod_cgroup(root, "/system.slice/5af1", "another") == ""
    assert pod_cgroup(root, "/kubepods/5af1", "../..") == "", "no name leads out, and the root is no pod's"


def test_a_runtime_in_a_namespace_of_its_own_has_another_top(tmp_path: Path) -> None:
    """Input: a node that is a container: its runtime's top is a cgroup of ours."""
    root = made(tmp_path, f"docker/node1/kubelet/kubepods/pod{UID}") / "docker/node1/kubelet/kubepods"
    assert pod_cgroup(root, f"/kubelet/kubepods/pod{UID}/5af1", "other") == str(root / f"pod{UID}")


def test_a_slice_of_systemd_by_the_pods_uid(tmp_path: Path) -> None:
    name = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{WITH_LINES}.slice"
    assert pod_cgroup(made(tmp_path, name) / "kubepods.slice", "", UID) == str(tmp_path / name)
