"""An external authorizer (envoy.service.auth.v3) for tests, also as a program: ``python
tests/fakes/ext_authz.py --port N``.

Allows a request whose field ``x-ext-authz`` is ``allow``, as Istio's sample authorizer does, or
whose body is, and tells the application so; a TCP connection by ``--tcp allow|deny``. Prints one
JSON line a check, and "ready" with its port when it listens.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

import grpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from nodeagent.protocols.envoy_auth_pb2 import CheckRequest, CheckResponse
from nodeagent.protocols.envoy_core_pb2 import HeaderValue
from tests.fakes.serving import Method, serve

METHOD = Method("envoy.service.auth.v3.Authorization", "Check", CheckRequest, CheckResponse)
PERMISSION_DENIED = 7


def allowed(**headers: str) -> CheckResponse:
    answer = CheckResponse()
    answer.ok_response.SetInParent()
    for name, value in headers.items():
        answer.ok_response.headers.add().header.CopyFrom(_header(name, value))
    return answer


def denied(status: int = 403, body: str = "", **headers: str) -> CheckResponse:
    answer = CheckResponse()
    answer.status.code = PERMISSION_DENIED
    answer.denied_response.status.code, answer.denied_response.body = status, body
    for name, value in headers.items():
        answer.denied_response.headers.add().header.CopyFrom(_header(name, value))
    return answer


def _header(name: str, value: str) -> HeaderValue:
    return HeaderValue(key=name.replace("_", "-"), value=value)


def by_header(request: CheckRequest, context: grpc.ServicerContext, tcp: str = "allow") -> CheckResponse:
    """Istio's sample: the request itself says whether it may pass."""
    attributes = request.attributes
    if not attributes.request.HasField("http"):
        return allowed() if tcp == "allow" else denied()
    if "allow" in (attributes.request.http.headers.get("x-ext-authz"), attributes.request.http.body):
        return allowed(x_ext_authz_check_result="allowed")
    return denied(
        body="denied by ext_authz for not found header `x-ext-authz: allow` in the request",
        x_ext_authz_check_result="denied",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--tcp", choices=("allow", "deny"), default="allow")
    options = parser.parse_args()
    printing = threading.Lock()

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        result, attributes = by_header(request, context, options.tcp), request.attributes
        http = attributes.request.http
        line = {
            "allowed": result.status.code == 0,
            "source": attributes.source.principal,
            "destination": attributes.destination.principal,
            "port": attributes.destination.address.socket_address.port_value,
            "method": http.method,
            "path": http.path,
            "host": http.host,
            "headers": dict(http.headers),
        }
        with printing:
            print(json.dumps(line), flush=True)
        return result

    server, port = serve(METHOD, answer, f"{options.address}:{options.port}")
    print(f"ready {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
