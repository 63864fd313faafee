"""A gRPC server and client with grpcio, sync and aio, that speak what grpcload (grpc-go) does, in
plain bytes.

    calls.py serve sync|aio PORT            until it is ended
    calls.py call sync|aio TARGET CASE…     one JSON object: what became of each case
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc import aio

SERVICE = "load.Load"
CHECK = ("grpc.health.v1.Health", "Check")
SERVING = b"\x08\x01"
"""HealthCheckResponse(status=SERVING)."""
LARGE = 3_000_000
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


# -- server --


def echo(request: bytes, context: Any) -> bytes:
    return request


def who(request: bytes, context: Any) -> bytes:
    return os.environ.get("GRPCLOAD_NAME", "").encode()


def fields(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata((("x-head", "h"),))
    context.set_trailing_metadata((("x-trailer", "t"),))
    seen = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    return json.dumps(seen).encode()


def fail(request: bytes, context: Any) -> bytes:
    code = next(each for each in grpc.StatusCode if each.value[0] == int(request))
    context.set_code(code)
    context.set_details("as asked: 100% é")
    return b""


def wait(request: bytes, context: Any) -> bytes:
    time.sleep(int(request) / 1000)  # the application's own time
    return request


def left(request: bytes, context: Any) -> bytes:
    remaining = context.time_remaining()
    return b"forever" if remaining is None or remaining > 1e6 else str(int(remaining * 1000)).encode()


def count(request: bytes, context: Any) -> Iterator[bytes]:
    messages, size = map(int, request.split())
    yield from (b"m" * size for _ in range(messages))


def total(requests: Iterator[bytes], context: Any) -> bytes:
    return str(sum(map(len, requests))).encode()


def chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from requests


def check(request: bytes, context: Any) -> bytes:
    return SERVING


def handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    made: dict[str, Any] = {
        method.__name__.capitalize(): grpc.unary_unary_rpc_method_handler(method)
        for method in (echo, who, fields, fail, wait, left)
    }
    made["Count"] = grpc.unary_stream_rpc_method_handler(count)
    made["Sum"] = grpc.stream_unary_rpc_method_handler(total)
    made["Chat"] = grpc.stream_stream_rpc_method_handler(chat)
    service, name = CHECK
    checks = {name: grpc.unary_unary_rpc_method_handler(check)}
    return (
        grpc.method_handlers_generic_handler(SERVICE, made),
        grpc.method_handlers_generic_handler(service, checks),
    )


def serve_sync(port: str) -> None:
    server = grpc.server(ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers(handlers())
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


async def serve_aio(port: str) -> None:
    server = aio.server(ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers(handlers())
    server.add_insecure_port(f"[::]:{port}")
    await server.start()
    await server.wait_for_termination()


# -- client --


def method(name: str) -> str:
    return f"/{SERVICE}/{name}"


def unary(channel: grpc.Channel, case: str) -> object:
    call = channel.unary_unary(method(case))
    if case == "Echo":
        return call(b"word").decode()
    if case == "Large":
        return len(channel.unary_unary(method("Echo"))(bytes(LARGE)))
    if case == "Fail":
        try:
            call(b"9")
        except grpc.RpcError as error:
            return [error.code().name, error.details()]
        return "no error"
    if case == "Fields":
        answer, told = call.with_call(b"", metadata=(("x-own", "mine"), ("x-own-bin", b"\x00\xff")))
        trailers = [value for key, value in told.trailing_metadata() if key == "x-trailer"]
        heads = [value for key, value in told.initial_metadata() if key == "x-head"]
        return [json.loads(answer)["x-own"], *heads, *trailers]
    if case == "Deadline":
        try:
            channel.unary_unary(method("Wait"))(b"20000", timeout=0.3)
        except grpc.RpcError as error:
            return error.code().name
        return "no error"
    if case == "Health":
        return channel.unary_unary("/" + "/".join(CHECK))(b"") == SERVING
    return streamed(channel, case)


def streamed(channel: grpc.Channel, case: str) -> object:
    if case == "Count":
        return sum(1 for _ in channel.unary_stream(method("Count"))(b"500 1024"))
    if case == "Sum":
        return channel.stream_unary(method("Sum"))(bytes(1000) for _ in range(100)).decode()
    if case == "Chat":
        words = [b"one", b"two", b"three"]
        return [answer.decode() for answer in channel.stream_stream(method("Chat"))(iter(words))]
    if case == "Cancel":
        call = channel.unary_stream(method("Count"))(b"100000000 1024")
        next(call)
        call.cancel()
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error.code().name
        return "no error"
    raise ValueError(case)


def call_sync(target: str, cases: list[str]) -> dict[str, object]:
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        return {case: unary(channel, case) for case in cases}


async def call_aio(target: str, cases: list[str]) -> dict[str, object]:
    async with aio.insecure_channel(target, options=OPTIONS) as channel:
        return {case: await AIO[case](channel) for case in cases}


async def aio_echo(channel: aio.Channel) -> object:
    return (await channel.unary_unary(method("Echo"))(b"word")).decode()


async def aio_large(channel: aio.Channel) -> object:
    return len(await channel.unary_unary(method("Echo"))(bytes(LARGE)))


async def aio_fail(channel: aio.Channel) -> object:
    try:
        await channel.unary_unary(method("Fail"))(b"9")
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return "no error"


async def aio_fields(channel: aio.Channel) -> object:
    call = channel.unary_unary(method("Fields"))(b"", metadata=(("x-own", "mine"), ("x-own-bin", b"\x00\xff")))
    answer = await call
    heads = [value for key, value in await call.initial_metadata() if key == "x-head"]
    trailers = [value for key, value in await call.trailing_metadata() if key == "x-trailer"]
    return [json.loads(answer)["x-own"], *heads, *trailers]


async def aio_deadline(channel: aio.Channel) -> object:
    try:
        await channel.unary_unary(method("Wait"))(b"20000", timeout=0.3)
    except grpc.RpcError as error:
        return error.code().name
    return "no error"


async def aio_health(channel: aio.Channel) -> object:
    return await channel.unary_unary("/" + "/".join(CHECK))(b"") == SERVING


async def aio_count(channel: aio.Channel) -> object:
    return len([message async for message in channel.unary_stream(method("Count"))(b"500 1024")])


async def aio_sum(channel: aio.Channel) -> object:
    return (await channel.stream_unary(method("Sum"))(bytes(1000) for _ in range(100))).decode()


async def aio_chat(channel: aio.Channel) -> object:
    async def words() -> AsyncIterator[bytes]:
        for word in (b"one", b"two", b"three"):
            yield word

    return [answer.decode() async for answer in channel.stream_stream(method("Chat"))(words())]


async def aio_cancel(channel: aio.Channel) -> object:
    call = channel.unary_stream(method("Count"))(b"100000000 1024")
    await call.read()
    call.cancel()
    return (await call.code()).name


AIO: dict[str, Callable[[aio.Channel], Awaitable[object]]] = {
    "Echo": aio_echo,
    "Large": aio_large,
    "Fail": aio_fail,
    "Fields": aio_fields,
    "Deadline": aio_deadline,
    "Health": aio_health,
    "Count": aio_count,
    "Sum": aio_sum,
    "Chat": aio_chat,
    "Cancel": aio_cancel,
}


def main(what: str, kind: str, where: str, *cases: str) -> None:
    if what == "serve":
        asyncio.run(serve_aio(where)) if kind == "aio" else serve_sync(where)
        return
    found = asyncio.run(call_aio(where, list(cases))) if kind == "aio" else call_sync(where, list(cases))
    print(json.dumps(found))


main(*sys.argv[1:])
