"""What the proxy's tests share: certificates of one authority, made once."""

from __future__ import annotations

import pytest

from nodeagent.identity.tls import Contexts
from tests.unit.proxy.nodes import credentials


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contexts]:
    return credentials(tmp_path_factory.mktemp("ca"), "client", "server")


@pytest.fixture(scope="session")
def foreign_tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contexts]:
    """Certificates with the same names by another authority."""
    return credentials(tmp_path_factory.mktemp("foreign-ca"), "client", "server")
