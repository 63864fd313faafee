"""Which way virtual machines are run, and what is said where they cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.vm import host
from tests.vm.telling import Failed

FLAGS = "processor\t: 0\nflags\t\t: fpu vme {} sse2\nbogomips\t: 1\n"


@pytest.mark.parametrize(
    ("flag", "kvm", "driver"),
    [
        ("svm", True, "kvm"),
        ("vmx", True, "kvm"),
        ("svm", False, "qemu"),
        ("", True, "qemu"),  # a host that only runs kernels that know it
        ("svmx", True, "qemu"),
    ],
)
def test_the_driver_is_kvm_only_where_the_processor_says_so(flag: str, kvm: bool, driver: str) -> None:
    assert host.driver(FLAGS.format(flag), kvm) == driver


def test_missing_packages_are_named_once_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool.startswith("qemu") else f"/usr/bin/{tool}")
    monkeypatch.setattr(host, "PLUGIN", tmp_path)
    with pytest.raises(Failed, match=r"not installed: qemu-system-x86 qemu-utils: `make vm-packages`"):
        host.examine(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("MEMORY", "MiB of memory are free"), ("DISK", "make room there")])
def test_too_little_memory_or_disk_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(host, "PLUGIN", tmp_path)
    monkeypatch.setattr(host, name, 1 << 40)
    with pytest.raises(Failed, match=words):
        host.examine(tmp_path)
