"""A gRPC server with grpc.health.v1 for tests, also as a program: ``python tests/fakes/health.py
--port N``; ``--ask HOST:PORT --method PATH --service NAME`` asks one that runs, and prints the
status.

The server itself and the service ``web`` are SERVING, ``ill`` is not, others are not known.
``/test.Secret/Tell`` is what no probe may reach. Prints one JSON line a call, and "ready" with its
port when it listens.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

SECRET = "/test.Secret/Tell"
CHECK = "/grpc.health.v1.Health/Check"
KNOWN = {"": HealthCheckResponse.SERVING, "web": HealthCheckResponse.SERVING, "ill": HealthCheckResponse.NOT_SERVING}


class Health(grpc.GenericRpcHandler):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.metadata: list[dict[str, str | bytes]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def check(request: HealthCheckRequest, context: grpc.ServicerContext) -> HealthCheckResponse:
            self.asked.append((details.method, request.service))
            self.metadata.append(dict(context.invocation_metadata()))
            print(json.dumps(self.asked[-1]), flush=True)
            if details.method != SECRET and request.service not in KNOWN:
                context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            return HealthCheckResponse(status=KNOWN.get(request.service, HealthCheckResponse.UNKNOWN))

        if details.method not in (SECRET, CHECK):
            return None
        return grpc.unary_unary_rpc_method_handler(
            check, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )


def serve(health: Health, address: str = "127.0.0.1:0") -> tuple[grpc.Server, int]:
    """Start a server at *address*; return it and its port."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[health], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def ask(target: str, method: str, service: str) -> str:
    """Return the name of the gRPC status that *target* answers with, or of the health that it tells."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(method, HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString)
        try:
            return str(
                HealthCheckResponse.ServingStatus.Name(call(HealthCheckRequest(service=service), timeout=60).status)
            )
        except grpc.RpcError as error:
            return str(error.code().name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9200)
    parser.add_argument("--address", default="[::]")
    parser.add_argument("--ask", default="")
    parser.add_argument("--method", default=CHECK)
    parser.add_argument("--service", default="")
    options = parser.parse_args()
    if options.ask:
        print(ask(options.ask, options.method, options.service))
        return
    server, port = serve(Health(), f"{options.address}:{options.port}")
    print(f"ready {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
