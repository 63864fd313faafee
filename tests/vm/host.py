"""Whether this machine can hold the VM lab, and how: what is missing is named with the next step."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.vm.telling import Failed

MACHINES = 2
MEMORY = 2048
"""MiB of each machine; the Vagrantfile's default."""
SPARE_MEMORY = 1024
DISK = 6144
"""MiB for a box, its copies as Vagrant and libvirt keep them, and what the machines write."""
TOOLS = {
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "ssh": "openssh-client",
    "tcpdump": "tcpdump",
}
SPEED = {"kvm": "hardware acceleration", "qemu": "emulated processors, some ten times slower"}
PLUGIN = Path("/usr/share/doc/vagrant-libvirt")


@dataclass(frozen=True)
class Host:
    """*driver*: ``kvm``, or ``qemu`` where the processors are emulated. *memory*, *disk*: MiB that are free."""

    driver: str
    memory: int
    disk: int

    def words(self) -> str:
        free = f"{self.memory} MiB of memory and {self.disk} MiB of disk"
        return f"driver {self.driver}: {SPEED[self.driver]}; {free} are free"


def driver(processors: str, kvm: bool) -> str:
    """Return libvirt's driver by /proc/cpuinfo: a /dev/kvm alone does not say that it runs others' kernels."""
    return "kvm" if kvm and re.search(r"^flags\s*:.*\b(svm|vmx)\b", processors, re.MULTILINE) else "qemu"


def missing(tools: dict[str, str]) -> str:
    """Return the packages of those *tools* that are not installed, empty if all are."""
    return " ".join(sorted({package for tool, package in tools.items() if shutil.which(tool) is None}))


def examine(folder: Path) -> Host:
    """Return what this machine is, with *folder* on its disk. Raises Failed that names what is missing."""
    packages = missing(TOOLS) + ("" if PLUGIN.exists() else " vagrant-libvirt")
    if packages.strip():
        raise Failed(f"not installed: {packages.strip()}: `make vm-packages` installs what virtual machines need")
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    memory = int(lines["MemAvailable"].split()[0]) // 1024
    if memory < MACHINES * MEMORY + SPARE_MEMORY:
        raise Failed(
            f"{memory} MiB of memory are free, and {MACHINES} machines of {MEMORY} MiB want "
            f"{MACHINES * MEMORY + SPARE_MEMORY}: end what you can spare"
        )
    disk = shutil.disk_usage(folder).free >> 20
    if disk < DISK:
        raise Failed(f"{folder}: {disk} MiB are free, and {DISK} are needed: make room there")
    return Host(driver(Path("/proc/cpuinfo").read_text(), Path("/dev/kvm").exists()), memory, disk)
