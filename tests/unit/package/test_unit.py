"""The unit and the AppArmor profile that the package brings, by the programs that read them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.config import Kubernetes
from nodeagent.logs.tail.journal_values import LZ4_LIBRARY, ZSTD_LIBRARY
from nodeagent.places.runtime import SOCKETS
from nodeagent.redirect.rights import LOG_RIGHTS, RIGHTS
from nodeagent.service_manager import WATCHDOG_SECONDS
from nodeagent.supervisor import PATIENCE_SECONDS, TAKE_OVER_SECONDS
from package.deb.build import CONTROL, debian_version

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "package" / "nodeagent.service"
PROFILE = ROOT / "package" / "nodeagent.apparmor"
CAPABILITIES = {right.name for right in (*RIGHTS, *LOG_RIGHTS)}


def values(key: str) -> list[str]:
    """Return the words of all lines of the unit with *key*."""
    lines = re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return " ".join(lines).split()


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in argv], capture_output=True, text=True, check=False)


def verified(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Have systemd read a unit, of which the program is one that is on this machine."""
    unit = folder / "nodeagent.service"
    unit.write_text(text.replace("/usr/bin/nodeagent", sys.executable))
    return run("systemd-analyze", "verify", unit)


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    done = verified(tmp_path, UNIT.read_text())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_that_it_does_not_understand_would_be_seen(tmp_path: Path) -> None:
    assert "ProtectSytem" in verified(tmp_path, UNIT.read_text().replace("ProtectSystem", "ProtectSytem")).stderr


def test_it_is_confined_as_far_as_the_agent_can_be() -> None:
    # ProtectKernelTunables= and RestrictSUIDSGID= are what a machine did not start with: see the unit.
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=46", "--no-pager", UNIT)
    assert done.returncode == 0, done.stdout[-200:]


def test_it_has_the_rights_that_the_agent_uses_and_no_others() -> None:
    assert set(values("CapabilityBoundingSet")) == {f"CAP_{name}" for name in CAPABILITIES}
    assert set(re.findall(r"^ *capability (\w+),$", PROFILE.read_text(), re.MULTILINE)) == set(
        map(str.lower, CAPABILITIES)
    )


def test_its_times_are_longer_than_the_daemons_own() -> None:
    assert float(values("WatchdogSec")[0]) >= 3 * WATCHDOG_SECONDS
    assert float(values("TimeoutStartSec")[0]) > TAKE_OVER_SECONDS
    assert float(values("TimeoutStopSec")[0]) > 2 * PATIENCE_SECONDS


def parsed(text: str) -> subprocess.CompletedProcess[str]:
    argv = ("/sbin/apparmor_parser", "--skip-kernel-load", "--skip-cache")
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)


def test_apparmor_understands_the_profile() -> None:
    profile = PROFILE.read_text()
    assert parsed(profile).returncode == 0, parsed(profile)
    assert parsed(profile.replace("sys_admin", "sys_admiral")).returncode != 0


def test_the_profile_has_every_socket_of_a_runtime_that_is_looked_for() -> None:
    named = re.findall(r"^ *@\{run\}(/\S+\.sock) rw,$", PROFILE.read_text(), re.MULTILINE)
    assert {f"/run{name}" for name in named} == set(map(str, (*SOCKETS, Kubernetes().nri)))


@pytest.mark.parametrize(
    ("version", "debian", "later"),
    [
        ("0.1.0", "0.1.0", "0.1.1"),
        ("1.0rc1", "1.0~rc1", "1.0"),
        ("1.0.dev3", "1.0~dev3", "1.0"),
        ("1.0a1", "1.0~a1", "1.0~b1"),
        ("1.0", "1.0", "1.0.post1"),
    ],
)
def test_versions_sort_for_dpkg_as_they_do_for_pip(version: str, debian: str, later: str) -> None:
    assert debian_version(version) == debian
    assert run("dpkg", "--compare-versions", debian, "lt", later).returncode == 0


def test_pins_can_be_written_whatever_is_read_only() -> None:
    """ProtectKernelTunables= names bpffs itself read-only, which no ReadWritePaths= of the same path outweighs."""
    assert values("ProtectKernelTunables") == [] and values("ReadWritePaths") == ["/sys/fs/bpf"]


@pytest.mark.parametrize("library", [ZSTD_LIBRARY, LZ4_LIBRARY])
def test_libraries_that_values_of_the_journal_want_come_with_package_and_image(library: str) -> None:
    asked = ["dpkg-query", "--search", f"*/{library}"]
    package = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.partition(":")[0]
    assert f" {package}," in CONTROL
    assert f'"{package}"' in (ROOT / "daemonset" / "image" / "build.py").read_text()
