"""What dpkg runs of the package, on a machine that is a folder, with programs that note how they were called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "package" / "deb"
PROGRAM = """#!/bin/sh
echo "{name} $*" >> {root}/calls
{does}
"""
SYSTEMCTL = """
case "$*" in
  is-enabled*) cat {root}/enabled; exit 1 ;;
  *is-active*) exec test -e {root}/active ;;
esac
"""
OLDER = "0.0.9"


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        for folder in ("bin", "var/lib/nodeagent/mesh", "run/systemd/system", "etc/nodeagent", "usr/lib/nodeagent/bin"):
            (root / folder).mkdir(parents=True)
        self.program("systemctl", SYSTEMCTL.format(root=root))
        self.program("getent", "echo nodeagent:x:1337:")
        self.program("userdel")
        self.program("journalctl")
        self.state("disabled")
        self.mounted()

    def program(self, name: str, does: str = "", folder: str = "bin") -> None:
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PROGRAM.format(name=name, root=self.root, does=does))
        path.chmod(0o755)

    def state(self, enabled: str, *, active: bool = False) -> None:
        (self.root / "enabled").write_text(f"{enabled}\n")
        (self.root / "active").touch() if active else (self.root / "active").unlink(missing_ok=True)

    def mounted(self, *paths: str) -> None:
        """Have the kernel say that something is mounted on *paths*; it need not be of another device."""
        lines = (f"36 25 0:34 / {self.root}/{path} rw - tmpfs tmpfs rw\n" for path in ("etc", *paths))
        (self.root / "mountinfo").write_text("".join(lines))

    def run(self, script: str, *arguments: str) -> list[str]:
        """Return which programs that change something were called."""
        text = (SCRIPTS / script).read_text()
        for top in ("/var/lib", "/run/", "/etc/nodeagent", "/usr/lib/nodeagent", "/usr/bin/nodeagent", "/sys/kernel"):
            text = text.replace(top, f"{self.root}{top}")
        text = text.replace("/proc/self/mountinfo", f"{self.root}/mountinfo")
        done = subprocess.run(
            ["sh", "-c", text, script, *arguments],
            env={"PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done
        calls = self.root / "calls"
        found = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [call for call in found if not call.startswith(("getent", "systemctl is-", "systemctl --quiet is-"))]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ENABLE, START, RELOAD = "systemctl --quiet enable nodeagent", "systemctl start nodeagent", "systemctl reload nodeagent"


@pytest.mark.parametrize(
    ("before", "enabled", "active", "calls"),
    [
        ("", "disabled", False, [ENABLE, START]),
        ("", "masked", False, []),
        ("", "masked-runtime", False, []),
        (OLDER, "enabled", True, [RELOAD]),
        (OLDER, "enabled", False, []),
        (OLDER, "disabled", False, []),
        (OLDER, "disabled", True, [RELOAD]),
        (OLDER, "masked", False, []),
    ],
)
def test_an_upgrade_leaves_the_unit_as_the_administrator_has_it(
    machine: Machine, before: str, enabled: str, active: bool, calls: list[str]
) -> None:
    machine.state(enabled, active=active)
    assert [call for call in machine.run("postinst", "configure", before) if "daemon-reload" not in call] == calls


def test_it_is_enabled_where_no_systemd_runs(machine: Machine) -> None:
    (machine.root / "run/systemd/system").rmdir()
    assert machine.run("postinst", "configure", "") == [ENABLE]
    assert machine.run("postinst", "configure", OLDER) == []


def test_a_package_that_was_removed_begins_anew(machine: Machine) -> None:
    """dpkg names the version before that of a package that was removed, as it does of one that is upgraded."""
    machine.run("postrm", "remove")
    assert {ENABLE, START} < set(machine.run("postinst", "configure", OLDER))
    assert not {ENABLE, START} & set(machine.run("postinst", "configure", OLDER))


@pytest.mark.parametrize(("loads", "file"), [("exit 0", "etc/nodeagent"), ("exit 1", "usr/lib/nodeagent")])
def test_what_is_in_the_kernel_goes_without_a_configuration_too(machine: Machine, loads: str, file: str) -> None:
    machine.program("python", loads, "usr/lib/nodeagent/bin")
    machine.program("nodeagent", "", "usr/bin")
    assert machine.run("prerm", "remove")[-1] == f"nodeagent uninstall -c {machine.root}/{file}/agent.yaml"


def test_what_is_purged_leaves_no_folder(machine: Machine) -> None:
    (machine.root / "var/lib/nodeagent/mesh/.hidden").touch()
    assert "userdel nodeagent" in machine.run("postrm", "purge")
    assert not any((machine.root / name).exists() for name in ("var/lib/nodeagent", "etc/nodeagent"))


@pytest.mark.parametrize("mount", ["var/lib/nodeagent", "var/lib/nodeagent/mesh", "var/lib/nodeagent/mesh/objects"])
def test_what_is_purged_leaves_what_is_mounted_there(machine: Machine, mount: str) -> None:
    shared = machine.root / mount / "folder" / "Pod.default.theirs.json"
    shared.parent.mkdir(parents=True)
    shared.touch()
    (machine.root / "etc/nodeagent/own").touch()
    machine.mounted(mount)
    machine.run("postrm", "purge")
    left = [path for name in ("var/lib", "etc") for path in (machine.root / name).rglob("*") if path.is_file()]
    assert left == [shared]


def test_of_what_is_purged_only_what_is_mounted_is_left(machine: Machine) -> None:
    for name in ("ca/key.pem", "mesh/own.json", "mesh-2/own.json", "mesh/shared/theirs.json"):
        path = machine.root / "var/lib/nodeagent" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    machine.mounted("var/lib/nodeagent/mesh/shared")
    machine.run("postrm", "purge")
    assert [path.name for path in (machine.root / "var/lib").rglob("*") if path.is_file()] == ["theirs.json"]
