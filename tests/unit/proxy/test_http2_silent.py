"""Endpoints of HTTP/2 that say nothing for long: they are waited for, and never asked for a word."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from nodeagent.mesh.entries import Endpoint
from nodeagent.proxy.http2.upstream import Http2Upstream
from nodeagent.proxy.pool import Pool
from nodeagent.proxy.transport import LOST_SECONDS
from nodeagent.vocabulary import Address, PodUid
from tests.unit.proxy.http2_peers import Http2Client
from tests.unit.proxy.http2_wire import Asking
from tests.unit.proxy.stage import Stage, answering, ok, play
from tests.waiting import packet, until

CALL = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
EMPTY = bytes(5)
"""A message of gRPC with nothing in it."""


def pools(stage: Stage) -> Iterator[Pool]:
    for routes in stage.pods["client"].routes.values():
        for hop in routes:
            pool = getattr(hop, "pool", None)
            if pool is not None:
                yield pool


def test_a_call_that_takes_hours_is_no_flood_to_a_server_of_grpc() -> None:
    """Its defaults end a connection by the third PING that comes within five minutes of another (too_many_pings)."""
    called = threading.Event()
    go = threading.Event()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        called.set()
        go.wait()
        return request

    server = grpc.server(ThreadPoolExecutor(1))
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Wait": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("silent.Server", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def scene(stage: Stage) -> None:
        stage.publish((Endpoint(Address("127.0.0.1"), port, PodUid("server")),))
        client = await Http2Client.on(await stage.connect())
        call = asyncio.get_running_loop().create_task(client.post("/silent.Server/Wait", EMPTY, more=CALL))
        await until(called.is_set)
        stage.halt()
        for _ in range(10):
            stage.context.now += 1000.0
            for pool in pools(stage):
                pool.sweep(stage.context.now, 3600.0)
            await packet()
        go.set()
        answer = await call
        assert answer.fields.get(b"grpc-status", answer.trailers.get(b"grpc-status")) == b"0"
        await client.close()

    try:
        play(answering(lambda head, body: ok(b"")), scene, protocol="grpc")
    finally:
        go.set()
        server.stop(None).wait()


def test_the_kernel_is_asked_whether_an_endpoint_is_there() -> None:
    asking = Asking()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        asking.pipe.get_extra_info = lambda name: ours  # type: ignore[method-assign]
        assert isinstance(asking.codec, Http2Upstream)
        asking.codec.begin()
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == LOST_SECONDS * 1000
