"""How an address is written with a port, and whose family it is."""

from __future__ import annotations

import pytest

from nodeagent.vocabulary import family_of, host_port


@pytest.mark.parametrize(
    ("address", "family", "written"),
    [("10.0.0.1", 4, "10.0.0.1:80"), ("::1", 6, "[::1]:80"), ("fd00::10.0.0.1", 6, "[fd00::10.0.0.1]:80")],
)
def test_an_address_and_a_port_as_an_authority(address: str, family: int, written: str) -> None:
    assert (family_of(address), host_port(address, 80)) == (family, written)
