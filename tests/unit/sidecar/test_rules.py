"""What is handed to iptables-restore; tests/netns/test_sidecar_init.py says what it does."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.sidecar.rules import CHAINS, PodCapture, install, remove

ISTIO = """*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
COMMIT
"""


def lines(**settings: Any) -> list[str]:
    return install(PodCapture(**settings), 4, "").splitlines()


def test_the_default_is_istios_order() -> None:
    assert install(PodCapture(), 4, "") == ISTIO


def test_ipv6_is_the_same_with_its_own_addresses() -> None:
    assert install(PodCapture(), 6, "") == ISTIO.replace("127.0.0.6/32", "::6/128").replace("127.0.0.1/32", "::1/128")


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        (
            {"exclude_outbound": (81, 443)},
            ["-A ISTIO_OUTPUT -p tcp --dport 81 -j RETURN", "-A ISTIO_OUTPUT -p tcp --dport 443 -j RETURN"],
        ),
        (
            {"exclude_ranges": (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))},
            ["-A ISTIO_OUTPUT -d 10.0.0.0/8 -j RETURN"],
        ),
        ({"include_outbound": (81,)}, ["-A ISTIO_OUTPUT -p tcp --dport 81 -j ISTIO_REDIRECT"]),
    ],
)
def test_exceptions_come_before_the_rest_is_captured(settings: dict[str, Any], rules: list[str]) -> None:
    assert lines(**settings)[-2 - len(rules) :] == [*rules, "-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT", "COMMIT"]


def test_only_some_ranges() -> None:
    found = lines(ranges=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    assert found[-2:] == ["-A ISTIO_OUTPUT -d 10.0.0.0/8 -p tcp -j ISTIO_REDIRECT", "COMMIT"]
    assert lines(ranges=())[-2] == "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN"


def test_only_some_inbound_ports_and_none() -> None:
    found = lines(inbound=(80,), exclude_inbound=(81,))
    assert "-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT" in found
    assert "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT" not in found
    assert not [line for line in lines(inbound=()) if line.startswith("-A ISTIO_INBOUND") or "PREROUTING" in line]


JUMPS = ("-A PREROUTING -p tcp -j ISTIO_INBOUND", "-A OUTPUT -p tcp -j ISTIO_OUTPUT")
SAVED = "\n".join([*(f":{name} - [0:0]" for name in CHAINS), *JUMPS, "-A OUTPUT -j OTHERS"])


def test_what_is_there_already_is_replaced_and_what_is_others_stays() -> None:
    found = install(PodCapture(), 4, SAVED).splitlines()
    assert found[5:7] == ["-D PREROUTING -p tcp -j ISTIO_INBOUND", "-D OUTPUT -p tcp -j ISTIO_OUTPUT"]
    assert not [line for line in found if "OTHERS" in line]


def test_to_remove_is_to_drop_jumps_and_chains() -> None:
    found = remove(SAVED).splitlines()
    assert found[5:-1] == [
        "-D PREROUTING -p tcp -j ISTIO_INBOUND",
        "-D OUTPUT -p tcp -j ISTIO_OUTPUT",
        *(f"-X {name}" for name in CHAINS),
    ]
    assert remove("") == ""


_ports = st.lists(st.integers(1, 65535), max_size=5).map(tuple)


@given(st.none() | _ports, _ports, _ports, _ports, st.sampled_from((4, 6)))
def test_every_chain_that_is_jumped_to_is_declared(
    inbound: Any, exclude_inbound: Any, include: Any, exclude: Any, family: Any
) -> None:
    found = install(PodCapture(inbound, exclude_inbound, include, exclude), family, "").splitlines()
    declared = {line.split()[0][1:] for line in found if line.startswith(":")}
    targets = {line.rsplit("-j ", 1)[1].split()[0] for line in found if " -j " in line} - {"RETURN", "REDIRECT"}
    assert targets <= declared == set(CHAINS)
    assert (
        len(set(found)) == len(found)
        or len(set(include)) < len(include)
        or len(set(exclude)) < len(exclude)
        or len(set(inbound or ())) < len(inbound or ())
    )
