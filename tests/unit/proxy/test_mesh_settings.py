"""Settings of the mesh on which policies rest: the form of paths, and other names of the trust domain."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import Contexts, contexts
from nodeagent.policy.mesh_settings import MeshSettings, PathNormalization
from nodeagent.policy.model import LocalLimit, RateLimit, Rule, RuleSource, TokenBucket
from nodeagent.vocabulary import SpiffeId
from tests.unit.proxy.nodes import Nodes, play
from tests.unit.proxy.stage import answering, ok
from tests.unit.proxy.test_guard import allow, deny, get, paths
from tests.unit.proxy.test_inbound import cut

show_head = answering(lambda head, body: ok(head))
REFUSED: list[tuple[PathNormalization, dict[str, bool]]] = [
    ("NONE", {"/admin": True, "/x/../admin": False, "//admin": False, "/x%2F..%2Fadmin": False}),
    ("BASE", {"/admin": True, "/x/../admin": True, "//admin": False, "/x%2F..%2Fadmin": False}),
    ("MERGE_SLASHES", {"/admin": True, "/x/../admin": True, "//admin": True, "/x%2F..%2Fadmin": False}),
    ("DECODE_AND_MERGE_SLASHES", {"/admin": True, "/x/../admin": True, "//admin": True, "/x%2F..%2Fadmin": True}),
]


@pytest.mark.parametrize(("form", "targets"), REFUSED)
def test_a_path_is_judged_in_the_form_that_the_mesh_asks_for(
    tls: dict[str, Contexts], form: PathNormalization, targets: dict[str, bool]
) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        answers = {target: (await get(streams, target))[0] for target in targets}
        assert answers == {target: 403 if refused else 200 for target, refused in targets.items()}

    mesh = MeshSettings("cluster.local", path_normalization=form)
    play(show_head, scene, tls, protocol="http", policies=(deny(paths("/admin")),), mesh=mesh)


@pytest.mark.parametrize(
    ("form", "forwarded"),
    [
        ("NONE", b"/a//./b%2F%63?q=//x"),
        ("BASE", b"/a//b%2Fc?q=//x"),
        ("MERGE_SLASHES", b"/a/b%2Fc?q=//x"),
        ("DECODE_AND_MERGE_SLASHES", b"/a/b/c?q=//x"),
    ],
)
def test_the_application_gets_what_was_judged(
    tls: dict[str, Contexts], form: PathNormalization, forwarded: bytes
) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        for _ in range(2):  # the second is remembered
            assert (await get(streams, "/a//./b%2F%63?q=//x"))[2].startswith(b"GET %b HTTP/1.1\r\n" % forwarded)

    mesh = MeshSettings("cluster.local", path_normalization=form)
    play(show_head, scene, tls, protocol="http", policies=(deny(paths("/admin")),), mesh=mesh)


def test_limits_count_paths_in_that_form(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        assert [(await get(streams, target))[0] for target in ("/a", "//a", "/b")] == [200, 429, 200]

    limit = RateLimit("default", "limit", (LocalLimit(TokenBucket(1, 1, 3600.0), paths=("/a",)),))
    mesh = MeshSettings("cluster.local", path_normalization="MERGE_SLASHES")
    play(show_head, scene, tls, protocol="http", policies=(limit,), mesh=mesh)


def test_a_path_that_was_forwarded_before_a_policy_came_is_judged_in_that_form(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        writer.write(b"GET /x/../admin HTTP/1.1\r\nHost: web\r\n\r\n")
        await reader.readuntil(b"\r\n\r\nhe")
        await nodes.protect((deny(paths("/admin")),))
        assert await cut(reader)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await reader.read()

    play(hold, scene, tls, protocol="http")


@pytest.fixture(scope="session")
def old_tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contexts]:
    """Certificates of another trust domain by the roots of this one: of a mesh that changes its name."""
    directory: Path = tmp_path_factory.mktemp("old-ca")
    authority = CertificateAuthority.open_or_create(directory, "cluster.local")
    authority._trust_domain = "old.example"
    client = authority.issue(SpiffeId("spiffe://old.example/ns/default/sa/client"), 3600)
    server = authority.issue(SpiffeId("spiffe://old.example/ns/default/sa/server"), 3600)
    authority._trust_domain = "cluster.local"
    return {
        "old client": contexts(client),
        "old server": contexts(server),
        **{
            pod: contexts(authority.issue(SpiffeId(f"spiffe://cluster.local/ns/default/sa/{pod}"), 3600))
            for pod in ("client", "server")
        },
    }


ALIASES = MeshSettings("cluster.local", ("old.example",))


@pytest.mark.parametrize("old", ["client", "server"])
def test_certificates_of_an_alias_are_taken_on_both_sides(old_tls: dict[str, Contexts], old: str) -> None:
    async def scene(nodes: Nodes) -> None:
        assert (await get(await nodes.connect()))[0] == 200
        (connection,) = nodes.far.context.connections.values()
        assert connection.peer.identity.endswith("/ns/default/sa/client")
        assert connection.peer.workload is not None

    play(show_head, scene, old_tls | {old: old_tls[f"old {old}"]}, protocol="http", mesh=ALIASES)


@pytest.mark.parametrize("old", ["client", "server"])
def test_certificates_of_another_trust_domain_are_not(old_tls: dict[str, Contexts], old: str) -> None:
    async def scene(nodes: Nodes) -> None:
        assert (await get(await nodes.connect()))[0] == 503
        assert nodes.app_connections == 0

    play(show_head, scene, old_tls | {old: old_tls[f"old {old}"]}, protocol="http")


@pytest.mark.parametrize("named", ["old.example", "cluster.local"])
@pytest.mark.parametrize("old", [False, True])
def test_a_policy_that_names_one_trust_domain_means_all(old_tls: dict[str, Contexts], named: str, old: bool) -> None:
    rule = Rule((RuleSource(principals=(f"{named}/ns/default/sa/client",)),))

    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        assert (await get(streams))[0] == 200
        await nodes.protect((deny(rule),))
        assert (await get(await nodes.connect()))[0] == 403

    client = old_tls["old client" if old else "client"]
    play(show_head, scene, old_tls | {"client": client}, protocol="http", policies=(allow(rule),), mesh=ALIASES)
