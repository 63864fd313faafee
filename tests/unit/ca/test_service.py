"""The certificate service and its client over real gRPC and TLS on loopback; each attack must fail."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nodeagent import config
from nodeagent.ca.grants import Caller
from nodeagent.ca.measures import CODES
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.server import METHOD, SERVICE, Server
from nodeagent.ca.service import Rates
from nodeagent.ca.settings import CaConfig
from nodeagent.errors import IdentityError
from nodeagent.identity import authority_directory, profiles
from nodeagent.identity.authority_directory import certificates
from nodeagent.identity.istio_ca import IstioCa
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.identity.tls import TCP_ALPN, client_context, server_context
from nodeagent.kube.access import ApiError
from nodeagent.protocols.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from nodeagent.telemetry import metrics
from nodeagent.vocabulary import SpiffeId
from tests.unit.identity.test_tls import Pair
from tests.waiting import DEADLINE, until

DOMAIN = "cluster.local"
WEB, SHOP, ELSEWHERE = (spiffe_id(DOMAIN, "default", name) for name in ("web", "shop", "elsewhere"))
AGENT = spiffe_id(DOMAIN, "system", "agent")
AGENT_TOKEN, WEB_TOKEN, LOST_TOKEN = "agent-token-0123456789", "web-token-0123456789", "lost-token-0123456789"
ISSUER = "https://kubernetes.default.svc"


class Stage:
    """A cluster's state, a service, and what a node needs to ask it."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.directory = path / "ca"
        (path / "source" / "objects").mkdir(parents=True)
        for name, node in (("web", "node1"), ("shop", "node1"), ("elsewhere", "node2")):
            self.pod(name, node)
        self.pod("agent", "node1", namespace="system")
        self.tokens = path / "tokens.yaml"
        self.tokens.touch(0o600)
        rows = [
            {"token": AGENT_TOKEN, "account": "system/agent", "node": "node1"},
            {"token": WEB_TOKEN, "account": "default/web", "node": "node1"},
            {"token": LOST_TOKEN, "account": "system/agent"},
        ]
        self.tokens.write_text(yaml.safe_dump(rows))
        document = {
            "directory": str(self.directory),
            "address": "127.0.0.1",
            "port": 0,
            "names": ["localhost", "127.0.0.1"],
            "source": str(path / "source"),
            "nodeAgents": ["system/agent"],
            "authentication": {"tokenFile": str(self.tokens)},
            "maxTtlSeconds": 7200,
            **settings,
        }
        self.config = CaConfig.model_validate(document)
        self.server: Server
        self.token_file, self.roots = path / "token", path / "roots.pem"
        self.token_file.write_text(AGENT_TOKEN + "\n")

    def pod(
        self,
        name: str,
        node: str,
        phase: str = "Running",
        *,
        namespace: str = "default",
        account: str | None = None,
        **metadata: Any,
    ) -> None:
        """Put a pod on *node*, of the service account *name* or *account* (empty: none)."""
        account = name if account is None else account
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", **metadata},
            "spec": {"nodeName": node, "containers": [], **({"serviceAccountName": account} if account else {})},
            "status": {"phase": phase},
        }
        (self.path / "source" / "objects" / f"Pod.{namespace}.{name}.json").write_text(json.dumps(pod))

    def client(self, **settings: Any) -> IstioCa:
        """Return a node's source."""
        self.roots.write_bytes((self.directory / authority_directory.ROOTS).read_bytes())
        document = {
            "address": f"127.0.0.1:{self.server.port}",
            "tokenFile": str(self.token_file),
            "rootCertFile": str(self.roots),
            "timeout": 10,
            **settings,
        }
        return IstioCa(config.IstioCaConfig.model_validate(document), DOMAIN, "Kubernetes")

    async def call(
        self, request: IstioCertificateRequest, token: str | None = AGENT_TOKEN, header: str | None = None
    ) -> list[str]:
        """Ask as an independent client; returns the chain."""
        roots = (self.directory / authority_directory.ROOTS).read_bytes()
        metadata = (
            [("authorization", header if header is not None else f"Bearer {token}")]
            if token is not None or header is not None
            else []
        )
        async with grpc.aio.secure_channel(
            f"localhost:{self.server.port}", grpc.ssl_channel_credentials(roots)
        ) as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/{METHOD}",
                request_serializer=IstioCertificateRequest.SerializeToString,
                response_deserializer=IstioCertificateResponse.FromString,
            )
            response = await method(request, metadata=metadata, timeout=60)
        return list(response.cert_chain)

    async def refused(
        self, request: IstioCertificateRequest, token: str | None = AGENT_TOKEN, header: str | None = None
    ) -> tuple[str, str]:
        """Ask and be refused; returns status and words."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.call(request, token, header)
        return error.value.code().name, error.value.details() or ""


@asynccontextmanager
async def served(stage: Stage) -> AsyncIterator[Stage]:
    stage.server = Server(stage.config)
    await stage.server.start()
    work = asyncio.create_task(stage.server.run())
    try:
        yield stage
        assert not work.done()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await stage.server.stop()


def play(path: Path, scene: Callable[[Stage], Awaitable[None]], **settings: Any) -> None:
    """Run *scene* beside the service."""

    async def run() -> None:
        async with asyncio.timeout(60), served(Stage(path, **settings)) as stage:
            await scene(stage)

    asyncio.run(run())


def csr(*names: str, key: Any = None, signer: Any = None) -> str:
    """Return a request for *names*; *signer*: whose signature it carries instead of its own."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names]), critical=True
        )
    return builder.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def request(identity: str | None = WEB, text: str | None = None, ttl: int = 3600) -> IstioCertificateRequest:
    made = IstioCertificateRequest(
        csr=csr(*([identity] if identity else [])) if text is None else text, validity_duration=ttl
    )
    if identity is not None:
        made.metadata["ImpersonatedIdentity"] = identity
    return made


def leaf_of(chain: list[str]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain[0].encode())


def uris(certificate: x509.Certificate) -> list[str]:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )


# -- what works --


def test_a_node_gets_its_pods_identities_and_they_speak_with_each_other(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        client = stage.client()
        web, shop = await asyncio.gather(client.issue(WEB, 3600), client.issue(SHOP, 3600))
        Pair(client_context(web, TCP_ALPN), server_context(shop)).handshake()
        assert 3000 < web.not_after - time.time() <= 3600
        assert len(certificates(web.chain_pem)) == 2
        # Beside what the built-in authority issues from the same directory.
        own = stage.server._authority.issue(WEB, 60)
        Pair(client_context(own, TCP_ALPN), server_context(shop)).handshake()

    play(tmp_path, scene)


def test_a_hundred_at_once(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        client = stage.client(timeout=DEADLINE)
        made = await asyncio.gather(*(client.issue((WEB, SHOP)[number % 2], 3600) for number in range(100)))
        assert len({certificate.serial for certificate in made}) == 100

    play(tmp_path, scene)


def test_an_independent_client_gets_leaf_intermediate_and_root(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        chain = await stage.call(request())
        assert len(chain) == 3
        assert uris(leaf_of(chain)) == [WEB]
        assert chain[-1].encode() == (stage.directory / authority_directory.ROOTS).read_bytes()

    play(tmp_path, scene)


def test_a_workload_gets_its_own_identity_without_asking_for_it(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        made = IstioCertificateRequest(csr=csr(), validity_duration=60)
        assert uris(leaf_of(await stage.call(made, WEB_TOKEN))) == [WEB]
        assert uris(leaf_of(await stage.call(request(), WEB_TOKEN))) == [WEB]

    play(tmp_path, scene)


@pytest.mark.parametrize(("asked", "given"), [(60, 60), (0, 7200), (10**9, 7200)])
def test_time_is_capped(tmp_path: Path, asked: int, given: int) -> None:
    async def scene(stage: Stage) -> None:
        leaf = leaf_of(await stage.call(request(ttl=asked)))
        lifetime = profiles.ends(leaf) - profiles.begins(leaf) - profiles.BACKDATED
        assert lifetime in (given - 1, given)

    play(tmp_path, scene)


def test_a_pod_that_comes_and_one_that_ends(tmp_path: Path) -> None:
    new = spiffe_id(DOMAIN, "default", "new")

    async def scene(stage: Stage) -> None:
        assert (await stage.refused(request(new)))[0] == "PERMISSION_DENIED"
        stage.pod("new", "node1")
        await until(lambda: new in stage.server.state.pods.identities_on("node1"))
        assert uris(leaf_of(await stage.call(request(new)))) == [new]
        stage.pod("new", "node1", "Succeeded")
        await until(lambda: new not in stage.server.state.pods.identities_on("node1"))
        assert (await stage.refused(request(new)))[0] == "PERMISSION_DENIED"

    play(tmp_path, scene)


def test_the_exchange_of_the_root_reaches_server_and_clients(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        client = stage.client()
        before = await client.issue(WEB, 3600)
        for step in (authority_directory.prepare, authority_directory.switch):
            step(stage.directory, time.time())
            stage.server._authority.refresh()
            stage.server._serving.renew()
            trusting = stage.client()  # rootCertFile follows
            during = replace(before, roots_pem=trusting.trust().roots_pem)
            after = await trusting.issue(SHOP, 3600)
            Pair(client_context(during, TCP_ALPN), server_context(after)).handshake()
            Pair(client_context(after, TCP_ALPN), server_context(during)).handshake()
        authority_directory.finish(stage.directory, time.time())
        stage.server._authority.refresh()
        last = stage.client()
        # The server's own certificate is of the new root too: the old one is trusted no more.
        Pair(
            client_context(await last.issue(WEB, 60), TCP_ALPN), server_context(await last.issue(SHOP, 60))
        ).handshake()

    play(tmp_path, scene)


def test_the_token_is_read_for_each_request(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        client = stage.client()
        stage.token_file.write_text("old")
        with pytest.raises(IdentityError, match=r"refused: UNAUTHENTICATED: .*CA_TRUSTED_NODE_ACCOUNTS"):
            await client.issue(WEB, 60)
        stage.token_file.write_text(AGENT_TOKEN)
        await client.issue(WEB, 60)

    play(tmp_path, scene)


def test_the_token_file_of_the_service_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        stage.tokens.write_text(
            yaml.safe_dump([{"token": "a-new-token-0123456", "account": "system/agent", "node": "node1"}])
        )
        assert (await stage.refused(request()))[0] == "UNAUTHENTICATED"
        await stage.call(request(), "a-new-token-0123456")
        stage.tokens.write_text("- {token: secret-secret-secret, account: '*'}")
        await stage.call(request(), "a-new-token-0123456")
        assert "0.account" in caplog.text
        assert "secret" not in caplog.text

    play(tmp_path, scene)


# -- what it tells of itself --


async def scrape(stage: Stage) -> dict[str, float]:
    """Return what the service's page of metrics says, by series."""
    assert stage.server.telemetry is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.telemetry.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    assert text.startswith("HTTP/1.1 200 ")
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("nodeagent_"))
    return {series: float(value) for series, _, value in lines}


def requests(code: str) -> str:
    return f'nodeagent_ca_requests_total{{code="{code}"}}'


def test_each_answer_is_counted_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        # All are there before the first answer: what begins at 1 has not increased.
        assert {(await scrape(stage))[requests(code)] for code in CODES} == {0}
        await stage.call(request())
        await stage.call(request(SHOP))
        assert (await stage.refused(request(ELSEWHERE)))[0] == "PERMISSION_DENIED"
        assert (await stage.refused(request(), "nobody"))[0] == "UNAUTHENTICATED"
        monkeypatch.setattr(stage.server._authority, "sign", broken)
        assert (await stage.refused(request()))[0] == "INTERNAL"
        found = await scrape(stage)
        counted = {code: found[requests(code)] for code in CODES if found[requests(code)]}
        assert counted == {"OK": 2, "PERMISSION_DENIED": 1, "UNAUTHENTICATED": 1, "INTERNAL": 1}
        ends = found['nodeagent_certificate_expiry_timestamp_seconds{identity="ca"}']
        assert ends == pytest.approx(stage.server._serving.current.not_after)

    play(tmp_path, scene, telemetryPort=0)


def test_a_look_that_fails_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.ca.server.LOOK_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        store = stage.server._measures.store
        await until(lambda: store.value(metrics.CA_LOOKS, ("right",)))
        assert store.value(metrics.CA_LOOKS, ("failed",)) == 0
        monkeypatch.setattr(stage.server.state, "look", unreachable)
        await until(lambda: store.value(metrics.CA_LOOKS, ("failed",)))

    play(tmp_path, scene, telemetryPort=0)


def broken(*_: object) -> None:
    raise IdentityError("the intermediate has ended")


async def unreachable() -> None:
    raise ApiError("the API server does not answer")


# -- attacks on the service --


def test_a_csr_with_anothers_name(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for text in (csr(SHOP), csr(WEB, SHOP), csr("spiffe://other/ns/default/sa/web")):
            assert (await stage.refused(request(WEB, text)))[0] == "PERMISSION_DENIED"
            assert (await stage.refused(IstioCertificateRequest(csr=text, validity_duration=60), WEB_TOKEN))[
                0
            ] == "PERMISSION_DENIED"
        assert (await stage.refused(request(WEB, csr("spiffe://x\nforged line"))))[1].startswith(
            r"csr: asks for 'spiffe://x\nforged line'"
        )

    play(tmp_path, scene)


def test_names_in_a_csr_that_are_no_uris_have_no_effect(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SHOP)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.default.svc")]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        text = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        leaf = leaf_of(await stage.call(request(WEB, text)))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(name.value) for name in names] == [WEB]
        assert not list(leaf.subject)
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    play(tmp_path, scene)


def test_an_identity_that_is_not_on_the_node(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        assert await stage.refused(request(ELSEWHERE)) == ("PERMISSION_DENIED", f"no pod on node node1 is {ELSEWHERE}")
        with pytest.raises(IdentityError, match="PERMISSION_DENIED: 'no pod on node node1 is"):
            await stage.client().issue(ELSEWHERE, 60)
        status, words = await stage.refused(request(), LOST_TOKEN)
        assert (status, "does not say on which node" in words) == ("PERMISSION_DENIED", True)

    play(tmp_path, scene)


def test_a_pod_that_asks_for_its_neighbour(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        status, words = await stage.refused(request(SHOP), WEB_TOKEN)
        assert (status, words) == ("PERMISSION_DENIED", f"{WEB} is no node's agent and may only have its own identity")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://other/ns/default/sa/web",
        "spiffe://cluster.local/ns/default",
        "web",
        "spiffe://cluster.local/ns/default/sa/web/x",
    ],
)
def test_another_trust_domain_or_no_spiffe_id(tmp_path: Path, name: str) -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.refused(request(name, csr())))[0] == "INVALID_ARGUMENT"

    play(tmp_path, scene)


def test_no_token_and_garbage(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for token, header in (
            (None, None),
            ("nonsense", None),
            (None, ""),
            (None, "Basic YTpi"),
            (None, AGENT_TOKEN),
            (None, "Bearer "),
            ("a.b.c", None),
            ("x" * 17000, None),
        ):
            status, words = await stage.refused(request(), token, header)
            assert status == "UNAUTHENTICATED" or (
                len(token or "") > 16000 and status in ("RESOURCE_EXHAUSTED", "UNAUTHENTICATED")
            ), (token, header)
            assert AGENT_TOKEN not in words

    play(tmp_path, scene)


def test_a_csr_signed_by_another_key(tmp_path: Path) -> None:
    """What was overheard is of no use: key and signature belong together."""

    async def scene(stage: Stage) -> None:
        heard, mine = (x509.load_pem_x509_csr(csr(WEB).encode()) for _ in range(2))
        for one, other in ((heard, mine), (mine, heard)):
            der = bytearray(one.public_bytes(serialization.Encoding.DER))
            at = der.rindex(one.signature)
            r, s = decode_dss_signature(other.signature)
            assert r != s
            if len(other.signature) == len(one.signature):
                der[at : at + len(one.signature)] = other.signature
            else:
                der[-1] ^= 1
            text = (
                "-----BEGIN CERTIFICATE REQUEST-----\n"
                + base64.encodebytes(bytes(der)).decode()
                + "-----END CERTIFICATE REQUEST-----\n"
            )
            status, words = await stage.refused(request(WEB, text))
            assert (status, words) == ("INVALID_ARGUMENT", "csr: its signature is not by its own key")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 20000,
        pytest.param(None, id="200 kB"),
    ],
)
def test_what_is_no_csr_or_huge(tmp_path: Path, text: str | None) -> None:
    async def scene(stage: Stage) -> None:
        status, _ = await stage.refused(request(WEB, "x" * 200_000 if text is None else text))
        assert status == ("RESOURCE_EXHAUSTED" if text is None else "INVALID_ARGUMENT")
        await stage.call(request())

    play(tmp_path, scene)


def test_a_csr_with_many_names(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.refused(request(WEB, csr(*[f"{SHOP}{number}" for number in range(150)]))))[
            0
        ] == "PERMISSION_DENIED"

    play(tmp_path, scene)


def with_long_exponent() -> rsa.RSAPrivateKey:
    """Return a key that is dear for whoever verifies by it."""
    made = rsa.generate_private_key(65537, 2048).private_numbers()
    order = (made.p - 1) * (made.q - 1)
    dear = next(each for each in range(order // 2 + 2, order) if gcd(each, order) == 1)
    secret = pow(dear, -1, order)
    public = rsa.RSAPublicNumbers(dear, made.p * made.q)
    parts = secret % (made.p - 1), secret % (made.q - 1), rsa.rsa_crt_iqmp(made.p, made.q)
    return rsa.RSAPrivateNumbers(made.p, made.q, secret, *parts, public).private_key()


@pytest.mark.parametrize(
    ("key", "good"),
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), False, id="RSA 1024"),
        pytest.param(lambda: rsa.generate_private_key(3, 2048), False, id="RSA with exponent 3"),
        pytest.param(with_long_exponent, False, id="RSA with an exponent as long as the modulus"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP224R1()), False, id="P-224"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), False, id="secp256k1"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), True, id="RSA 2048"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), True, id="P-384"),
    ],
)
def test_the_keys_strength(tmp_path: Path, key: Callable[[], Any], *, good: bool) -> None:
    async def scene(stage: Stage) -> None:
        made = request(WEB, csr(WEB, key=key()))
        if good:
            assert uris(leaf_of(await stage.call(made))) == [WEB]
        else:
            status, words = await stage.refused(made)
            assert (status, "allowed are keys" in words) == ("INVALID_ARGUMENT", True)

    play(tmp_path, scene)


def test_a_negative_time(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.refused(request(ttl=-1)))[0] == "INVALID_ARGUMENT"

    play(tmp_path, scene)


def test_too_many_requests_of_one_caller_spare_the_others(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.call(request())
        await stage.call(request())
        assert (await stage.refused(request()))[0] == "RESOURCE_EXHAUSTED"
        await stage.call(request(), WEB_TOKEN)

    play(tmp_path, scene, requestsPerSecond=0.2)


def test_the_rate_is_a_bucket_that_fills_again() -> None:
    now = [0.0]
    rates, one, other = Rates(1, lambda: now[0]), Caller(WEB), Caller(SHOP)
    for _ in range(10):
        rates.take(one)
    with pytest.raises(Refusal, match="more than 1 requests a second"):
        rates.take(one)
    rates.take(other)
    now[0] = 2
    rates.take(one)
    rates.take(one)
    with pytest.raises(Refusal):
        rates.take(one)


# -- Kubernetes' tokens --


class Cluster:
    """An API server's key, and the tokens that it would give."""

    def __init__(self, path: Path) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        self.path = path / "jwks.json"
        self.publish(self.key)

    def publish(self, key: rsa.RSAPrivateKey) -> None:
        numbers = key.public_key().public_numbers()
        row = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": "one",
            "n": b64(numbers.n.to_bytes(256, "big")),
            "e": b64(numbers.e.to_bytes(3, "big")),
        }
        self.path.write_text(json.dumps({"keys": [row]}))

    def settings(self) -> dict[str, Any]:
        return {"authentication": {"serviceAccountTokens": {"keys": str(self.path), "issuer": ISSUER}}}

    def claims(self, namespace: str = "system", account: str = "agent", **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        kubernetes = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": "u"},
            "pod": {"name": account, "uid": f"uid-{account}"},
            "node": {"name": "node1", "uid": "n"},
        }
        return {
            "iss": ISSUER,
            "aud": ["istio-ca"],
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "kubernetes.io": kubernetes,
            **changes,
        }

    def bound(self, **changes: Any) -> dict[str, Any]:
        """Return the agent's claims with *changes* in what they are bound to; None: that is missing."""
        claims = self.claims()
        kubernetes = {**claims["kubernetes.io"], **changes}
        claims["kubernetes.io"] = {
            name: value for name, value in kubernetes.items() if value is not None or name == "pod"
        }
        return claims

    def token(
        self, claims: dict[str, Any], header: dict[str, Any] | None = None, key: rsa.RSAPrivateKey | None = None
    ) -> str:
        head = {"alg": "RS256", "kid": "one", **(header or {})}
        signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        return f"{signed}.{b64((key or self.key).sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_service_accounts_token(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)

    async def scene(stage: Stage) -> None:
        assert uris(leaf_of(await stage.call(request(WEB), cluster.token(cluster.claims())))) == [WEB]
        assert (await stage.refused(request(ELSEWHERE), cluster.token(cluster.claims())))[0] == "PERMISSION_DENIED"
        mine = cluster.token(cluster.claims("default", "web"))
        assert uris(leaf_of(await stage.call(IstioCertificateRequest(csr=csr()), mine))) == [WEB]
        assert (await stage.refused(request(SHOP), mine))[0] == "PERMISSION_DENIED"
        # Before Kubernetes 1.30 no token names its node: it is that of the token's pod.
        assert uris(leaf_of(await stage.call(request(WEB), cluster.token(cluster.bound(node=None))))) == [WEB]

    play(tmp_path, scene, **cluster.settings())


def test_a_token_holds_while_its_pod_runs_and_only_for_its_node(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    dead = {"name": "agent", "uid": "of-an-earlier-pod"}
    unproved = {
        "an earlier pod of its name": cluster.bound(pod=dead),
        "a pod that never was": cluster.bound(pod={"name": "x\n", "uid": "x"}),
        "another account's pod": cluster.bound(pod={"name": "lone", "uid": "uid-lone"}),
        "no pod by name": cluster.bound(pod=None),
        "another node than its pod's": cluster.bound(node={"name": "node2"}),
        "a node without a name": cluster.bound(node={}),
        "a mirror of a static pod": cluster.bound(pod={"name": "mirror", "uid": "uid-mirror"}),
    }

    async def scene(stage: Stage) -> None:
        stage.pod("lone", "node2", namespace="system")
        stage.pod(
            "mirror", "node2", namespace="system", account="agent", annotations={"kubernetes.io/config.mirror": "x"}
        )
        await until(lambda: ("system", "mirror") in stage.server.state.pods._pods)
        for name, claims in unproved.items():
            for asked in (request(WEB), request(None)):
                status, words = await stage.refused(asked, cluster.token(claims))
                assert status == "UNAUTHENTICATED", name
                assert words.isprintable()
        unbound = cluster.token(
            {
                **cluster.claims(),
                "kubernetes.io": {
                    "namespace": "system",
                    "serviceaccount": {"name": "agent"},
                    "node": {"name": "node1"},
                },
            }
        )
        assert uris(leaf_of(await stage.call(request(None), unbound))) == [AGENT]
        assert "does not say on which node" in (await stage.refused(request(WEB), unbound))[1]
        # What has ended proves nothing any more.
        stage.pod("agent", "node1", "Failed", namespace="system")
        await until(lambda: ("system", "agent") not in stage.server.state.pods._pods)
        assert (await stage.refused(request(WEB), cluster.token(cluster.claims())))[0] == "UNAUTHENTICATED"

    play(tmp_path, scene, **cluster.settings())


def test_a_mirror_of_a_static_pod_gives_its_node_no_identity(tmp_path: Path) -> None:
    """A kubelet may make mirrors in any namespace, and no other pods (NodeRestriction): what it
    says there proves nothing.
    """
    mirror = {"kubernetes.io/config.mirror": "0123", "kubernetes.io/config.source": "file"}
    owner = [{"apiVersion": "v1", "kind": "Node", "name": "node1", "controller": True}]

    async def scene(stage: Stage) -> None:
        stage.pod("plain", "node1", namespace="payments", account="")
        stage.pod("marked", "node1", namespace="payments", account="vault", annotations=mirror)
        stage.pod("owned", "node1", namespace="payments", account="vault", ownerReferences=owner)
        stage.pod("after", "node1", namespace="payments")
        await until(lambda: spiffe_id(DOMAIN, "payments", "after") in stage.server.state.pods.identities_on("node1"))
        for account in ("default", "vault"):
            status, words = await stage.refused(request(spiffe_id(DOMAIN, "payments", account)))
            assert (status, words.startswith("no pod on node node1 is")) == ("PERMISSION_DENIED", True)

    play(tmp_path, scene)


def test_tokens_that_prove_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    good = cluster.claims()
    now = time.time()
    stranger = rsa.generate_private_key(65537, 2048)
    unsigned = cluster.token(good, {"alg": "none"}).rpartition(".")[0] + "."
    bad = {
        "ended": cluster.token({**good, "exp": now - 61}),
        "not yet": cluster.token({**good, "nbf": now + 120}),
        "no end": cluster.token({name: value for name, value in good.items() if name != "exp"}),
        "an end that is no number": cluster.token({**good, "exp": float("nan")}),
        "audience": cluster.token({**good, "aud": ["api"]}),
        "no audience": cluster.token({name: value for name, value in good.items() if name != "aud"}),
        "issuer": cluster.token({**good, "iss": "https://elsewhere"}),
        "subject": cluster.token({**good, "sub": "system:serviceaccount:default:web"}),
        "a user": cluster.token({**good, "sub": "admin", "kubernetes.io": None}),
        "another key": cluster.token(good, key=stranger),
        "another key of the same name": cluster.token(good, {"kid": "one"}, stranger),
        "a name nobody has": cluster.token(good, {"kid": "two"}),
        "none": unsigned,
        "HS256": cluster.token(good, {"alg": "HS256"}),
        "crit": cluster.token(good, {"crit": ["b64"], "b64": False}),
        "changed": cluster.token(good)[:-8] + "AAAAAAAA",
        "four parts": cluster.token(good) + ".x",
        "no JSON": f"{b64(b'[')}.{b64(b'{}')}.{b64(b'x')}",
        "deep": f"{b64(b'[' * 6000)}.{b64(b'{}')}.x",
        "a static one": AGENT_TOKEN,
    }

    async def scene(stage: Stage) -> None:
        for name, token in bad.items():
            status, words = await stage.refused(request(), token)
            assert status == "UNAUTHENTICATED", name
            assert token not in words
        await stage.call(request(), cluster.token(good))

    play(tmp_path, scene, **cluster.settings())


def test_new_keys_of_the_api_server_need_no_restart(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)

    async def scene(stage: Stage) -> None:
        new = rsa.generate_private_key(65537, 2048)
        token = cluster.token(cluster.claims(), key=new)
        assert (await stage.refused(request(), token))[0] == "UNAUTHENTICATED"
        cluster.publish(new)
        await stage.call(request(), token)
        cluster.path.write_text("{")
        await stage.call(request(), token)

    play(tmp_path, scene, **cluster.settings())


# -- a service that lies, and one that is not there --


class Liar:
    """A certificate service of its own making, with the true service's TLS certificate."""

    def __init__(self, stage: Stage, answer: Callable[[IstioCertificateRequest], list[str]]) -> None:
        self._stage, self._answer = stage, answer

    async def __aenter__(self) -> IstioCa:
        made = self._stage.server._authority.issue_server(["127.0.0.1"], 600)
        self._server = grpc.aio.server()

        async def create(asked: Any, context: Any) -> Any:
            return IstioCertificateResponse(cert_chain=self._answer(asked))

        handler = grpc.unary_unary_rpc_method_handler(
            create, IstioCertificateRequest.FromString, IstioCertificateResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        port = self._server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(made.key_pem, made.chain_pem)])
        )
        await self._server.start()
        return self._stage.client(address=f"127.0.0.1:{port}")

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


def test_answers_that_are_not_what_was_asked_for(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        authority = stage.server._authority

        def sign(
            asked: IstioCertificateRequest, identity: SpiffeId = WEB, ttl: float = 600, by: Any = authority
        ) -> list[str]:
            key = x509.load_pem_x509_csr(asked.csr.encode()).public_key()
            return [by.sign(identity, key, ttl)[1].decode()]

        stranger = type(authority).open_or_create(tmp_path / "stranger", DOMAIN)
        foreign = type(authority).open_or_create(tmp_path / "foreign", "other")
        past = type(authority).open_or_create(stage.directory, DOMAIN, lambda: time.time() - 7200)
        future = type(authority).open_or_create(stage.directory, DOMAIN, lambda: time.time() + 7200)
        lies: list[tuple[Callable[[IstioCertificateRequest], list[str]], str]] = [
            (lambda asked: [authority.issue(WEB, 600).chain_pem.decode()], "for another key than ours"),
            (lambda asked: sign(asked, SHOP), f"is for {SHOP}, not for {WEB}"),
            (
                lambda asked: sign(asked, SpiffeId("spiffe://other/ns/default/sa/web"), by=foreign),
                "is for spiffe://other",
            ),
            (lambda asked: sign(asked, by=past), "ended at"),
            (lambda asked: sign(asked, by=future), "begins only at"),
            (lambda asked: sign(asked, ttl=2), "ended at"),
            (lambda asked: sign(asked, by=stranger), "not accepted by the trusted roots"),
            (
                lambda asked: [*sign(asked, by=stranger), stranger.roots_pem.decode()],
                "not accepted by the trusted roots",
            ),
            (
                lambda asked: [
                    sign(asked)[0].partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
                ],
                "not accepted by the trusted roots",
            ),
            (lambda asked: [], "no certificate as PEM"),
            (lambda asked: ["nothing"], "no certificate as PEM"),
            (
                lambda asked: ["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
                "not certificates as PEM",
            ),
            (lambda asked: sign(asked) * 100, "at most 65536 are allowed"),
        ]
        for answer, words in lies:
            async with Liar(stage, answer) as client:
                with pytest.raises(IdentityError, match=r"identity\.istioCa 127\.0\.0\.1:.*" + words):
                    await client.issue(WEB, 600)
        async with Liar(stage, sign) as client:
            assert (await client.issue(WEB, 600)).identity == WEB

    play(tmp_path, scene)


def test_a_self_signed_answer(tmp_path: Path) -> None:
    """With the right key and the right name, and no authority."""

    async def scene(stage: Stage) -> None:
        made: list[Any] = []

        def answer(asked: IstioCertificateRequest) -> list[str]:
            key = x509.load_pem_x509_csr(asked.csr.encode()).public_key()
            signer = ec.generate_private_key(ec.SECP256R1())
            now = x509.load_pem_x509_certificate(stage.server._authority.issue(WEB, 600).chain_pem)
            builder = x509.CertificateBuilder(
                x509.Name([]), x509.Name([]), key, 7, profiles.begin(now), profiles.end(now)
            )
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB)]), critical=True
            )
            made.append(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())
            return [made[-1]]

        async with Liar(stage, answer) as client:
            with pytest.raises(IdentityError, match="not accepted by the trusted roots"):
                await client.issue(WEB, 600)
        assert made

    play(tmp_path, scene)


def test_a_server_of_another_root_gets_no_token(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        client = stage.client()
        other = type(stage.server._authority).open_or_create(tmp_path / "other", DOMAIN)
        stage.roots.write_bytes(other.roots_pem)
        with pytest.raises(IdentityError, match=r"the server's certificate is not accepted.*rootCertFile"):
            await client.issue(WEB, 60)

    play(tmp_path, scene)


def test_a_service_that_is_not_there_or_silent(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)  # says nothing
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(IdentityError, match=r"no answer within 0\.2 s"):
            await stage.client(address=f"127.0.0.1:{port}", timeout=0.2).issue(WEB, 60)
        silent.close()
        with pytest.raises(IdentityError, match=r"identity\.istioCa 127\.0\.0\.1:1: "):
            await stage.client(address="127.0.0.1:1").issue(WEB, 60)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("", "holds no token"), ("two words", "holds no token"), ("x" * 20000, "at most")],
)
def test_a_token_file_that_is_of_no_use(tmp_path: Path, content: str | None, words: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.token_file.unlink()
        if content is not None:
            stage.token_file.write_text(content)
        with pytest.raises(IdentityError, match=f"tokenFile: .*{words}"):
            await stage.client().issue(WEB, 60)

    play(tmp_path, scene)


# -- configuration --


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"authentication": {}}, "at least one of"),
        ({"nodeAgents": ["agent"]}, "NAMESPACE/SERVICE-ACCOUNT"),
        ({"names": ["UPPER.example"]}, "host name"),
        ({"names": []}, "names"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Stage(tmp_path, **change)


def test_tokens_that_others_may_read(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.tokens.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        asyncio.run(Server(stage.config).start())
