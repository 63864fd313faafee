"""A gRPC server of one method, on grpcio: independent of the client that it is to test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc


class Method(NamedTuple):
    service: str
    name: str
    request: Any
    response: Any


def serve(
    method: Method,
    answer: Callable[[Any, grpc.ServicerContext], Any],
    address: str = "127.0.0.1:0",
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.Server, int]:
    """Start a server at *address* that answers every call with *answer*, by TLS where it has *credentials*; return it
    and its port.
    """
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, method.response.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(method.service, {method.name: handler}),))
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    return server, port
