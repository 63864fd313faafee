"""What agents trust, in a ConfigMap that others may write to too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import pytest

from nodeagent.ca.secret import ClusterAuthority, RootsConfigMap
from nodeagent.identity.authority_directory import ROOTS
from nodeagent.kube.access import KubeObject


class Api:
    """An API server with one ConfigMap."""

    def __init__(self, data: dict[str, str]) -> None:
        self.data = data
        self.patched: list[object] = []

    async def get(self, path: str) -> KubeObject:
        return {"metadata": {"resourceVersion": "7"}, "data": self.data}

    async def post(self, path: str, document: Mapping[str, object]) -> KubeObject:
        raise AssertionError("it is there")

    async def patch(self, path: str, patch: object, content_type: str) -> KubeObject:
        self.patched.append(patch)
        return {}


class Authority:
    async def follow(self) -> None:
        """Nothing changes."""

    def roots_pem(self) -> bytes:
        return b"roots"


@pytest.mark.parametrize(
    ("data", "written"),
    [
        ({ROOTS: "roots"}, False),
        ({ROOTS: "roots", "ca.crt": "of trust-manager"}, False),
        ({ROOTS: "others", "ca.crt": "of trust-manager"}, True),
        ({}, True),
    ],
)
def test_keys_of_others_are_left_alone(data: dict[str, str], written: bool) -> None:
    """Input: a key that another program adds. Verdict: the ConfigMap is written when the roots differ, and not else."""
    api = Api(data)
    asyncio.run(RootsConfigMap(api, "nodeagent", "roots").keep(cast(ClusterAuthority, Authority())))
    wanted = {"metadata": {"resourceVersion": "7"}, "data": {ROOTS: "roots"}}
    assert api.patched == ([wanted] if written else [])
