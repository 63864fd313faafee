"""Real TLS handshakes in memory: who is let in, and who is not."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nodeagent.errors import IdentityError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.identity.tls import HTTP_ALPN, TCP_ALPN, client_context, contexts, peer_identity, server_context

DOMAIN = "cluster.local"
WEB, SHOP = spiffe_id(DOMAIN, "default", "web"), spiffe_id(DOMAIN, "shop", "till")


class Pair:
    """A client and a server that speak through memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._to_client, self._to_server, server_side=False)
        self.server = server.wrap_bio(self._to_server, self._to_client, server_side=True)

    def handshake(self) -> None:
        """Raises ssl.SSLError from the side that refuses."""
        for _ in range(4):
            for side in (self.client, self.server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        self.client.write(b"ping")
        assert self.server.read(4) == b"ping"
        self.server.write(b"pong")
        assert self.client.read(4) == b"pong"


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN)


@pytest.fixture
def web(authority: CertificateAuthority) -> Certificate:
    return authority.issue(WEB, 3600)


@pytest.fixture
def shop(authority: CertificateAuthority) -> Certificate:
    return authority.issue(SHOP, 3600)


def test_both_sides_prove_who_they_are(web: Certificate, shop: Certificate) -> None:
    pair = Pair(contexts(web).client_http, contexts(shop).server)
    pair.handshake()
    assert peer_identity(pair.client, DOMAIN) == SHOP
    assert peer_identity(pair.server, DOMAIN) == WEB
    assert pair.client.version() == "TLSv1.3"


@pytest.mark.parametrize("alpn", [HTTP_ALPN, TCP_ALPN])
def test_alpn_says_what_is_inside(web: Certificate, shop: Certificate, alpn: str) -> None:
    pair = Pair(client_context(web, alpn), server_context(shop))
    pair.handshake()
    assert pair.server.selected_alpn_protocol() == pair.client.selected_alpn_protocol() == alpn


def test_a_sidecar_that_offers_several_gets_http(web: Certificate, shop: Certificate) -> None:
    client = client_context(web, HTTP_ALPN)
    client.set_alpn_protocols(["istio-peer-exchange", "istio", "istio-http/1.1", "http/1.1"])
    pair = Pair(client, server_context(shop))
    pair.handshake()
    assert pair.server.selected_alpn_protocol() == HTTP_ALPN


def test_no_session_is_resumed(web: Certificate, shop: Certificate) -> None:
    client, server = contexts(web).client_http, contexts(shop).server
    first = Pair(client, server)
    first.handshake()
    assert first.client.session is None or not first.client.session.has_ticket
    second = Pair(client, server)
    second.handshake()
    assert not second.client.session_reused


def test_a_client_without_a_certificate_is_refused(shop: Certificate) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=shop.roots_pem.decode())
    with pytest.raises(ssl.SSLError) as refused:
        Pair(bare, server_context(shop)).handshake()
    assert refused.value.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def test_tls_1_2_is_refused(web: Certificate, shop: Certificate) -> None:
    old = client_context(web, HTTP_ALPN)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        Pair(old, server_context(shop)).handshake()


def test_an_ended_certificate_is_refused_by_either_side(tmp_path: Path, web: Certificate) -> None:
    ended = CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN, lambda: time.time() - 7200).issue(SHOP, 3600)
    for client, server in ((web, ended), (ended, web)):
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            Pair(client_context(client, TCP_ALPN), server_context(server)).handshake()


def test_a_certificate_that_does_not_hold_yet_is_refused(tmp_path: Path, web: Certificate) -> None:
    early = CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN, lambda: time.time() + 3600).issue(SHOP, 3600)
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        Pair(client_context(web, TCP_ALPN), server_context(early)).handshake()


def test_another_authority_is_refused_even_with_the_same_names(tmp_path: Path, web: Certificate) -> None:
    impostor = CertificateAuthority.open_or_create(tmp_path / "other", DOMAIN).issue(SHOP, 3600)
    for client, server in ((web, impostor), (impostor, web)):
        with pytest.raises(ssl.SSLCertVerificationError):
            Pair(client_context(client, TCP_ALPN), server_context(server)).handshake()


def self_signed(
    uris: list[str],
    issuer: Certificate | None = None,
    *,
    ca: bool = False,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> tuple[Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate that the authority never would; signed by *issuer*'s key, or by its own."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    signer: ec.EllipticCurvePrivateKey = own
    issuer_name = x509.Name([])
    if issuer is not None:
        loaded = serialization.load_pem_private_key(issuer.key_pem, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
        issuer_name = x509.load_pem_x509_certificate(issuer.chain_pem).subject
    now = datetime.now(UTC).replace(tzinfo=None)
    builder = x509.CertificateBuilder(
        issuer_name,
        x509.Name([]),
        own.public_key(),
        x509.random_serial_number(),
        now - timedelta(hours=1),
        now + timedelta(hours=1),
    ).add_extension(x509.BasicConstraints(ca, None), critical=True)
    if uris:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=True
        )
    pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(WEB, pem, private, pem, "1", 0, 0), own


def test_a_self_signed_certificate_is_refused(web: Certificate) -> None:
    forged, _ = self_signed([SHOP])
    forged = replace(forged, roots_pem=web.roots_pem)
    for client, server in ((web, forged), (forged, web)):
        with pytest.raises(ssl.SSLCertVerificationError):
            Pair(client_context(client, TCP_ALPN), server_context(server)).handshake()


def test_a_workload_cannot_sign_for_others(web: Certificate) -> None:
    """The pod's own certificate is no authority, whatever it signs with its key."""
    forged, _ = self_signed([SHOP], web)
    forged = replace(forged, chain_pem=forged.chain_pem + web.chain_pem, roots_pem=web.roots_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        Pair(client_context(forged, TCP_ALPN), server_context(web)).handshake()


def test_another_trust_domain_is_refused_though_its_root_is_trusted(tmp_path: Path, web: Certificate) -> None:
    stranger = CertificateAuthority.open_or_create(tmp_path / "other", "other").issue(
        spiffe_id("other", "default", "web"), 3600
    )
    both = web.roots_pem + stranger.roots_pem
    pair = Pair(
        client_context(replace(stranger, roots_pem=both), TCP_ALPN), server_context(replace(web, roots_pem=both))
    )
    pair.handshake()
    assert peer_identity(pair.client, DOMAIN) == WEB
    with pytest.raises(IdentityError, match="of trust domain other"):
        peer_identity(pair.server, DOMAIN)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [WEB, SHOP],
        ["https://cluster.local/"],
        ["spiffe://cluster.local"],
        [f"{WEB}/more"],
        [f"{WEB}?a=b"],
        ["spiffe://CLUSTER.LOCAL/ns/a/sa/b"],
    ],
)
def test_a_certificate_without_exactly_one_good_uri_proves_nothing(web: Certificate, uris: list[str]) -> None:
    odd, _ = self_signed(uris, ca=True)
    pair = Pair(
        client_context(replace(odd, roots_pem=web.roots_pem), TCP_ALPN),
        server_context(replace(web, roots_pem=odd.roots_pem)),
    )
    pair.handshake()
    with pytest.raises(IdentityError):
        peer_identity(pair.server, DOMAIN)


class Uncertified:
    def getpeercert(self) -> dict[str, object] | None:
        return None


def test_no_certificate_proves_nothing() -> None:
    with pytest.raises(IdentityError, match="no certificate"):
        peer_identity(Uncertified(), DOMAIN)


def test_parts_that_do_not_fit_are_an_error(web: Certificate, shop: Certificate) -> None:
    for broken in (
        replace(web, key_pem=shop.key_pem),
        replace(web, chain_pem=b"nothing"),
        replace(web, roots_pem=b"nothing"),
        replace(web, roots_pem=b"\xff"),
    ):
        with pytest.raises(IdentityError, match="do not fit together") as refused:
            contexts(broken)
        assert "PRIVATE" not in str(refused.value)
