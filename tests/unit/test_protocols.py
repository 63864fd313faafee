"""The messages of other people's protocols: the generated code is that of the .proto files, and
names and numbers are those on the wire.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import ServiceDescriptor

from nodeagent.protocols import (
    envoy_auth_pb2,
    envoy_core_pb2,
    envoy_discovery_pb2,
    envoy_ratelimit_pb2,
    envoy_secret_pb2,
    envoy_tls_pb2,
    istio_ca_pb2,
    spiffe_workload_pb2,
)
from nodeagent.protocols.generate import HERE, generate


def test_generated_code_is_that_of_the_definitions(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "nodeagent/protocols").iterdir()}
    kept = {path.name: path.read_text() for path in HERE.glob("*_pb2.py*")}
    assert kept == fresh


def test_a_secret_travels_under_its_real_type_url() -> None:
    packed = Any()
    packed.Pack(envoy_tls_pb2.Secret(name="ROOTCA"))
    assert packed.type_url == "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def test_methods_have_their_real_paths() -> None:
    def paths(service: ServiceDescriptor) -> set[str]:
        return {f"/{service.full_name}/{method.name}" for method in service.methods}

    assert paths(istio_ca_pb2.DESCRIPTOR.services_by_name["IstioCertificateService"]) == {
        "/istio.v1.auth.IstioCertificateService/CreateCertificate"
    }
    assert paths(envoy_auth_pb2.DESCRIPTOR.services_by_name["Authorization"]) == {
        "/envoy.service.auth.v3.Authorization/Check"
    }
    assert paths(envoy_ratelimit_pb2.DESCRIPTOR.services_by_name["RateLimitService"]) == {
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
    }
    assert paths(envoy_secret_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"]) == {
        f"/envoy.service.secret.v3.SecretDiscoveryService/{name}"
        for name in ("StreamSecrets", "DeltaSecrets", "FetchSecrets")
    }
    assert paths(spiffe_workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]) == {
        f"/SpiffeWorkloadAPI/{name}"
        for name in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")
    }


def test_bytes_are_those_of_the_public_protocols() -> None:
    """Encoded by hand from the specifications' field numbers: tag = number * 8 + kind."""
    check = envoy_auth_pb2.CheckRequest()
    check.attributes.source.principal = "p"
    check.attributes.request.http.method = "GET"
    assert check.SerializeToString() == b"\x0a\x0e" + b"\x0a\x03\x22\x01p" + b"\x22\x07\x12\x05\x12\x03GET"
    denied = envoy_auth_pb2.CheckResponse.FromString(
        b"\x0a\x02\x08\x07" + b"\x12\x09" + b"\x0a\x03\x08\x91\x03" + b"\x1a\x02no"
    )
    assert (denied.status.code, denied.denied_response.status.code, denied.denied_response.body) == (7, 401, "no")
    option = envoy_core_pb2.HeaderValueOption.FromString(b"\x0a\x06\x0a\x01k\x12\x01v" + b"\x12\x02\x08\x01")
    assert (option.header.key, option.header.value, option.append.value) == ("k", "v", True)
    request = envoy_discovery_pb2.DiscoveryRequest.FromString(
        b"\x12\x03\x0a\x01n" + b"\x1a\x06ROOTCA" + b"\x2a\x011" + b"\x32\x02\x08\x03"
    )
    assert (request.node.id, list(request.resource_names), request.response_nonce, request.error_detail.code) == (
        "n",
        ["ROOTCA"],
        "1",
        3,
    )
    limit = envoy_ratelimit_pb2.RateLimitRequest(domain="d")
    limit.descriptors.add().entries.add(key="k", value="v")
    assert limit.SerializeToString() == b"\x0a\x01d" + b"\x12\x08\x0a\x06\x0a\x01k\x12\x01v"
    svid = spiffe_workload_pb2.X509SVIDResponse(
        svids=[spiffe_workload_pb2.X509SVID(spiffe_id="s", x509_svid=b"c", x509_svid_key=b"k", bundle=b"b")]
    )
    assert svid.SerializeToString() == b"\x0a\x0c" + b"\x0a\x01s" + b"\x12\x01c" + b"\x1a\x01k" + b"\x22\x01b"
    assert (
        spiffe_workload_pb2.X509BundlesResponse(bundles={"t": b"b"}).SerializeToString()
        == b"\x12\x06\x0a\x01t\x12\x01b"
    )
    secret = envoy_tls_pb2.Secret(name="n")
    secret.tls_certificate.private_key.inline_bytes = b"k"
    assert secret.SerializeToString() == b"\x0a\x01n" + b"\x12\x05" + b"\x12\x03" + b"\x12\x01k"
    csr = istio_ca_pb2.IstioCertificateRequest(csr="c", validity_duration=5)
    assert csr.SerializeToString() == b"\x0a\x01c" + b"\x18\x05"
