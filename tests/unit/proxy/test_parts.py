"""The parts of a proxy: what they share, what they may know of each other, and what they ask of a transport."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nodeagent.config import ProxySettings
from nodeagent.mesh.entries import Delta
from nodeagent.policy.model import AuthorizationPolicy, Rule
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.proxy import Proxy
from nodeagent.proxy.request_ids import RequestIds
from nodeagent.proxy.tls.stream import TlsStream
from nodeagent.proxy.transport import Transport, own_address, peer_address, reset
from nodeagent.vocabulary import PodUid
from tests.unit import house
from tests.unit.house import Import
from tests.unit.proxy.stage import context
from tests.waiting import DEADLINE

ROOT = Path(__file__).parents[3]
METHODS = sorted(name for name in vars(Transport) if not name.startswith("_"))
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def imports() -> tuple[Import, ...]:
    return house.imports(house.modules(ROOT / "nodeagent"))


def test_nobody_but_the_composition_knows_the_pipeline(imports: tuple[Import, ...]) -> None:
    assert {each.importer for each in imports if each.imported == "nodeagent.proxy.pipeline"} == {
        "nodeagent.proxy.proxy"
    }


def test_the_context_knows_no_stage(imports: tuple[Import, ...]) -> None:
    known = {each.imported for each in imports if each.importer == "nodeagent.proxy.context"}
    stages = {
        "accept",
        "admission",
        "carry",
        "guard",
        "ledger",
        "pipeline",
        "pool",
        "guards",
        "revocation",
        "routing",
    }
    assert known and not known & {f"nodeagent.proxy.{stage}" for stage in stages}


def test_request_ids_are_uuids_of_version_4_and_differ() -> None:
    ids = RequestIds()
    taken = [ids.take() for _ in range(1000)]
    assert len(set(taken)) == 1000
    assert all(UUID.fullmatch(one) for one in taken)


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_the_loops_transports_have_what_the_proxy_uses(loop: Any) -> None:
    async def scene() -> None:
        accepted: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

        class Client(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                accepted.set_result(transport)

        server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", 0)
        where = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*where)
        transport = await accepted
        assert [name for name in METHODS if not callable(getattr(transport, name, None))] == []
        assert own_address(transport) == where
        assert peer_address(transport) == writer.get_extra_info("sockname")
        reset(transport)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        server.close()

    made = loop()
    try:
        made.run_until_complete(asyncio.wait_for(scene(), DEADLINE))
    finally:
        made.close()


def test_a_tls_session_has_what_the_proxy_uses() -> None:
    stream = TlsStream(ssl.create_default_context(), server_side=False, ready=print, failed=print)
    assert [name for name in METHODS if not callable(getattr(stream, name, None))] == []


def test_a_proxy_is_whole_when_it_is_made_and_says_what_a_change_means() -> None:
    async def scene() -> None:
        proxy = Proxy(context(ProxySettings(), None))
        pod = PodState(PodUid("pod"), 1, "", lambda family, count: None)
        proxy.enrol(pod)
        assert proxy.context.pods == {"pod": pod}
        generation = proxy.context.view.generation
        assert not proxy.put([Delta(())])
        policy = AuthorizationPolicy("default", "deny", "DENY", (Rule(),))
        assert proxy.put([Delta((policy,))])
        proxy.node_is(["10.0.0.1"])
        assert proxy.context.node_addresses == {"10.0.0.1"}
        proxy.node_is(["10.0.0.1"])  # which changes nothing: no route is made anew
        assert proxy.release("pod") is pod
        assert proxy.release("pod") is None
        assert proxy.context.view.generation == generation + 4
        proxy.revocation.drain()
        proxy.revocation.sweep()
        assert proxy.context.draining

    uvloop.run(scene())
