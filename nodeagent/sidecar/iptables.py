"""The rules of :mod:`nodeagent.sidecar.rules` in the network namespace of this process: both
families are tried before one is changed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nodeagent import istio
from nodeagent.errors import KernelError
from nodeagent.sidecar import rules
from nodeagent.sidecar.rules import PodCapture
from nodeagent.vocabulary import Family

_PREFIX: Final[dict[Family, str]] = {4: "iptables", 6: "ip6tables"}
_IF_INET6: Final = Path("/proc/self/net/if_inet6")
_NO_IPV6_ON_LO: Final = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_LOCK_SECONDS: Final = "10"


def install(capture: PodCapture) -> None:
    """Install the rules, once however often it is called. Raises KernelError; nothing is changed
    when either family's rules are refused.
    """
    _commit(lambda family, present: rules.install(capture, family, present))
    _own_source("replace")


def clean() -> None:
    """Remove the rules. Raises KernelError."""
    _commit(lambda _, present: rules.remove(present))
    _own_source("del")


def preview(capture: PodCapture) -> str:
    """Return what :func:`install` would hand to iptables-restore and ip6tables-restore, each under
    a comment that says which.
    """
    return "".join(
        f"# {_PREFIX[family]}-restore --noflush\n{rules.install(capture, family, '')}" for family in families()
    )


def families() -> tuple[Family, ...]:
    """Return the address families of this network namespace."""
    return (4, 6) if _IF_INET6.exists() else (4,)


def _commit(make: Callable[[Family, str], str]) -> None:
    made = {
        family: text for family in families() if (text := make(family, _run([f"{_PREFIX[family]}-save", "-t", "nat"])))
    }
    for more in (["--test"], []):
        for family, text in made.items():
            _run([f"{_PREFIX[family]}-restore", "--noflush", "--wait", _LOCK_SECONDS, *more], text)


def _own_source(action: str) -> None:
    """IPv4's whole 127.0.0.0/8 is the loopback's; of IPv6 only ::1 is, and nothing where IPv6 is switched off by
    sysctl: the kernel and its tables have IPv6 all the same, and the rules are there if it is switched on.
    """
    if 6 not in families() or _switched_off():
        return
    address = f"{istio.OWN_SOURCE[6]}/128"
    there = f"inet6 {address} " in _run(["ip", "-6", "addr", "show", "dev", "lo"])
    if there != (action == "replace"):
        _run(["ip", "-6", "addr", action, address, "dev", "lo"])


def _switched_off() -> bool:
    return _NO_IPV6_ON_LO.exists() and _NO_IPV6_ON_LO.read_text().strip() != "0"


def _run(argv: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise KernelError(
            f"{argv[0]} is not installed: the image of sidecar-init needs iptables and iproute2"
        ) from None
    if done.returncode:
        words = " ".join(done.stderr.split())[:500]
        raise KernelError(
            f"{' '.join(argv)}: {words or f'exit status {done.returncode}'}: sidecar-init needs CAP_NET_ADMIN and "
            "CAP_NET_RAW in the pod"
        )
    return done.stdout
