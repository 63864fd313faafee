"""libvirt's daemon in a room, without systemd: what it keeps is in a folder that goes with the run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.telling import Failed
from tests.waiting import eventually

_OURS = ("VAGRANT", "NODEAGENT", "LIBVIRT")
"""How names of variables begin that say how Vagrant and the Vagrantfile behave."""
SOCKET = Path("/run/libvirt/libvirt-sock")
# No labels, cgroups and name spaces for machines that end with this room; consoles go straight into files.
QEMU = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
DAEMON = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run libvirtd meanwhile; it keeps everything in *folder*. Raises Failed when it does not start.

    Only within a room: its mounts hide the machine's own /etc/libvirt and /var/lib/libvirt.
    """
    for name, hidden in (("etc", "/etc/libvirt"), ("lib", "/var/lib/libvirt"), ("cache", "/var/cache/libvirt")):
        (folder / name).mkdir(parents=True)
        Path(hidden).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", folder / name, hidden], check=True)
    (folder / "etc" / "qemu.conf").write_text(QEMU)
    (folder / "etc" / "libvirtd.conf").write_text(DAEMON)
    log = folder / "libvirtd.log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(["libvirtd"], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        try:
            eventually(lambda: SOCKET.exists() or daemon.poll() is not None, "libvirtd listens")
        except AssertionError:
            pass
        if not SOCKET.exists():
            raise Failed(f"libvirtd does not answer at {SOCKET}: the end of its log:\n{log.read_text()[-2000:]}")
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def environment(folder: Path) -> dict[str, str]:
    """Return the environment for Vagrant: nothing of the caller's home is read or written."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return others | {
        "HOME": str(folder),
        "VAGRANT_HOME": str(folder / "vagrant.d"),
        "VAGRANT_DOTFILE_PATH": str(folder / "state"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "LIBVIRT_DEFAULT_URI": "qemu:///system",
    }
