"""An application that takes its identity from the SPIFFE Workload API by the `spiffe` package, run
in a pod; prints JSON lines.

workload.py svid SOCKET                      its X.509-SVID, checked against its bundle
workload.py watch SOCKET COUNT               the serial numbers of COUNT updates, as they come
workload.py jwt SOCKET AUDIENCE…             a JWT-SVID
workload.py validate SOCKET AUDIENCE         stdin is a JWT-SVID: validated by the server, and here by the bundle
workload.py call SOCKET METHOD [KEY=VALUE…]  one call with an empty request and this metadata: its status
workload.py abuse SOCKET                     connections without number, bytes without end, garbage, large messages
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store
from spiffe import JwtSvid, WorkloadApiClient, X509Bundle, X509Svid
from spiffe.errors import PySpiffeError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""RFC 9113, section 3.4, with empty SETTINGS."""


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def svid(client: WorkloadApiClient) -> None:
    context = client.fetch_x509_context()
    own = context.default_svid
    bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(own.spiffe_id.trust_domain)
    assert bundle is not None
    assert {*bundle.x509_authorities} == {
        *context.x509_bundle_set.get_bundle_for_trust_domain(own.spiffe_id.trust_domain).x509_authorities
    }
    public = [
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for key in (own.private_key.public_key(), own.leaf.public_key())
    ]
    say(
        id=str(own.spiffe_id),
        serial=f"{own.leaf.serial_number:x}",
        same_key=public[0] == public[1],
        names=verified(own, bundle),
    )


def verified(own: X509Svid, bundle: X509Bundle) -> list[str]:
    """Return the names in *own*, once its chain leads to *bundle*."""
    any_name = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    issuer = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    policy = (
        PolicyBuilder()
        .store(Store(list(bundle.x509_authorities)))
        .extension_policies(ee_policy=any_name, ca_policy=issuer)
    )
    checked = policy.build_client_verifier().verify(own.leaf, own.cert_chain[1:])
    return [name.value for name in checked.subjects or ()]


def watch(client: WorkloadApiClient, count: int) -> None:
    enough, left = threading.Event(), itertools.count(count - 1, -1)

    def update(context: object) -> None:
        own = context.default_svid  # type: ignore[attr-defined]
        say(id=str(own.spiffe_id), serial=f"{own.leaf.serial_number:x}")
        if next(left) <= 0:
            enough.set()

    subscription = client.stream_x509_contexts(on_success=update, on_error=lambda error: say(error=str(error)))
    enough.wait(90)
    subscription.cancel()


def jwt(client: WorkloadApiClient, audience: set[str]) -> None:
    own = client.fetch_jwt_svid(audience=audience)
    say(id=str(own.spiffe_id), token=own.token, audience=sorted(own.audience))


def validate(client: WorkloadApiClient, audience: str) -> None:
    token = sys.stdin.read().strip()

    def offline() -> str:
        (bundle,) = client.fetch_jwt_bundles().bundles
        return str(JwtSvid.parse_and_validate(token, bundle, {audience}).spiffe_id)

    say(online=attempt(lambda: str(client.validate_jwt_svid(token, audience).spiffe_id)), offline=attempt(offline))


def attempt(action: Callable[[], str]) -> str:
    try:
        return action()
    except PySpiffeError as error:
        return f"refused: {error}"


def call(address: str, method: str, metadata: list[tuple[str, str]]) -> None:
    """One call without the package, which says the metadata of its own accord."""
    with grpc.insecure_channel(address) as channel:
        try:
            next(channel.unary_stream(method)(b"", metadata=metadata, timeout=60), None)
        except grpc.RpcError as error:
            say(status=error.code().name, details=error.details())
        else:
            say(status="OK", details="")


def abuse(path: str) -> None:
    kept = [connected(path) for _ in range(200)]
    for connection in kept:
        connection.close()
    flood = connected(path)
    try:
        for _ in range(4096):
            flood.sendall(PREFACE[:24] + b"\0\x40\0" + b"\0" * 16390)
    except OSError:
        pass
    with connected(path) as garbage:
        garbage.sendall(b"\xff" * 4096)
        answer(garbage)
    with grpc.insecure_channel(f"unix://{path}") as channel:
        endless = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(
            b"\0" * 100_000, metadata=[("workload.spiffe.io", "true")], timeout=60
        )
        assert attempt_code(endless) == grpc.StatusCode.RESOURCE_EXHAUSTED
    say(done=True)


def connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)  # waits for room in the backlog, which one with a timeout does not
    connection.settimeout(60)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Return what comes until the other side has enough."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:
        pass
    return got


def attempt_code(call: grpc.Call) -> grpc.StatusCode:
    try:
        next(iter(call))  # type: ignore[call-overload]
    except grpc.RpcError:
        pass
    return call.code()


def main(command: str, path: str, *arguments: str) -> None:
    address = f"unix://{path}"
    if command == "call":
        call(
            address,
            arguments[0],
            [(key, value) for key, _, value in (argument.partition("=") for argument in arguments[1:])],
        )
    elif command == "abuse":
        abuse(path)
    else:
        with WorkloadApiClient(address, default_timeout=30) as client:
            if command == "svid":
                svid(client)
            elif command == "watch":
                watch(client, int(arguments[0]))
            elif command == "jwt":
                jwt(client, set(arguments))
            else:
                validate(client, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
