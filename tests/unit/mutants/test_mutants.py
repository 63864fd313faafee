"""10,000 mutants of what is right: each is taken or refused by name, nothing else leaves a reader,
and the last good one stays.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nodeagent.ca.refusal import Refusal
from nodeagent.ca.request import public_key
from nodeagent.errors import IdentityError
from nodeagent.identity import profiles
from nodeagent.identity.verify import accept, trusted_roots
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entry_json import from_json, to_json
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.policy.authorization import CompiledPolicy
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy
from nodeagent.resources.changes import AnyChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.last_good import LastGood
from nodeagent.resources.manifests import Manifests
from nodeagent.vocabulary import SpiffeId
from nodeagent.webhook.review import BadReviewError, answer, decide, labels, parse
from tests.unit.mutants import mutate
from tests.unit.webhook.reviews import POD, SETTINGS, body

IDENTITY = SpiffeId("spiffe://cluster.local/ns/shop/sa/web")
ISTIO = "security.istio.io/v1"
SELECTOR = {"matchLabels": {"app": "web"}}
LABELS = {"app": "web", "version": "v1"}
POLICIES: list[dict[str, Any]] = [
    {
        "apiVersion": ISTIO,
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": "authorization",
            "namespace": "shop",
            "annotations": {"istio.io/dry-run": "false"},
            "creationTimestamp": "2026-01-31T12:00:00Z",
        },
        "spec": {
            "selector": SELECTOR,
            "action": "DENY",
            "rules": [
                {
                    "from": [
                        {"source": {"principals": ["a/b"], "ipBlocks": ["1.2.3.0/24"]}},
                        {"source": {"serviceAccounts": ["a/b"]}},
                    ],
                    "to": [{"operation": {"paths": ["/a/{*}"], "ports": ["80"], "methods": ["GET"], "hosts": ["x"]}}],
                    "when": [
                        {"key": "request.headers[x]", "values": ["a"]},
                        {"key": "source.ip", "notValues": ["10.0.0.0/8"]},
                    ],
                }
            ],
        },
    },
    {
        "apiVersion": ISTIO,
        "kind": "PeerAuthentication",
        "metadata": {"name": "peer", "namespace": "shop"},
        "spec": {"selector": SELECTOR, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "DISABLE"}}},
    },
    {
        "apiVersion": ISTIO,
        "kind": "RequestAuthentication",
        "metadata": {"name": "request", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "jwtRules": [
                {
                    "issuer": "a",
                    "jwksUri": "http://x:1/",
                    "audiences": ["a"],
                    "fromHeaders": [{"name": "a", "prefix": "b"}],
                    "fromParams": ["a"],
                    "outputClaimToHeaders": [{"header": "x", "claim": "z"}],
                    "timeout": "5s",
                }
            ],
        },
    },
    {
        "apiVersion": "nodeagent.io/v1alpha1",
        "kind": "RateLimit",
        "metadata": {"name": "limit", "namespace": "shop"},
        "spec": {
            "selector": SELECTOR,
            "local": [
                {
                    "match": {"methods": ["GET"], "paths": ["/a*"], "headers": {"x": "z"}},
                    "by": ["principal", {"header": "x"}],
                    "tokenBucket": {"maxTokens": 1, "tokensPerFill": 1, "fillInterval": "1s"},
                }
            ],
            "global": {"provider": "p", "domain": "d", "descriptors": [{"entries": [{"key": "a", "value": "b"}]}]},
        },
    },
]
ANNOTATIONS = {
    "nodeagent.io/workload-api": "/run/sockets",
    "nodeagent.io/path": "kernel",
    "nodeagent.io/bypass": "enabled",
    "nodeagent.io/enroll": "true",
    "traffic.sidecar.istio.io/excludeInboundPorts": "80,443",
    "traffic.sidecar.istio.io/excludeOutboundPorts": "9",
    "lab.nodeagent.io/netns": "/run/netns/x",
    "lab.nodeagent.io/cgroup": "/sys/fs/cgroup/x",
    "sidecar.istio.io/status": "",
}
OBJECTS: list[dict[str, Any]] = [
    {
        "kind": "Pod",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "0b5a",
            "labels": LABELS,
            "annotations": {key: value for key, value in ANNOTATIONS.items() if value},
            "creationTimestamp": "2026-01-31T12:00:00Z",
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": True}],
        },
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": "web",
            "containers": [
                {
                    "name": "c",
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/x"}},
                    "readinessProbe": {"grpc": {"port": 9, "service": "s"}},
                }
            ],
            "volumes": [{"name": "v", "csi": {"driver": "csi.spiffe.io"}}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    },
    {
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "annotations": {"nodeagent.io/path": "proxy"}},
        "spec": {
            "clusterIPs": ["10.96.0.1", "fd00::2"],
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"},
                {"port": 9, "targetPort": 9},
            ],
        },
    },
    {
        "kind": "Node",
        "metadata": {"name": "node1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.1"}]},
    },
    {"kind": "Namespace", "metadata": {"name": "shop", "labels": LABELS, "annotations": {"nodeagent.io/path": "auto"}}},
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "net", "namespace": "shop"},
        "spec": {
            "podSelector": {
                "matchLabels": LABELS,
                "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
            }
        },
    },
    *POLICIES,
]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Thousands of refusals are no news."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def carried(delta_entries: Any) -> None:
    """Entries go to the workers as JSON, and are compiled there."""
    for entry in delta_entries:
        assert from_json(orjson.loads(orjson.dumps(to_json(entry)))) == entry
        if isinstance(entry, AuthorizationPolicy):
            CompiledPolicy.of(entry, MeshSettings("cluster.local"))


@pytest.mark.parametrize("seed", range(4))
def test_yaml(tmp_path: Path, seed: int) -> None:
    """750 × 4 mutants of a file of policies: each is read, and none that is refused takes a last good one away."""
    chance = Random(seed)
    folder = tmp_path / "policies"
    folder.mkdir()
    file, kept = folder / "a.yaml", LastGood(tmp_path / "last-good")
    good = "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in POLICIES)
    keys = {(each["kind"], "shop", each["metadata"]["name"]) for each in POLICIES}
    manifests = Manifests((folder,), kept)
    for number in range(750):
        file.write_text(good)
        manifests.everything()
        assert (manifests.held(file).keys(), manifests.refused()) == (keys, [])
        file.write_bytes(mutate.of_yaml(chance, good))
        manifests.everything()
        held, refused = manifests.held(file), manifests.refused()
        carried(policy.spec for policy in held.values() if policy.kind != "PeerAuthentication")
        assert not refused or keys <= held.keys(), (number, refused)
        assert not any(policy.refused for key, policy in held.items() if key in keys), number


@pytest.mark.parametrize("seed", range(4))
def test_objects(tmp_path: Path, seed: int) -> None:
    """500 × 4 mutants of objects: each is read or refused, compiled, and goes to the workers."""
    chance, mesh = Random(seed), Mesh("node1", "cluster.local", AnnotationPlaces())

    async def changes() -> list[AnyChange]:
        source = DirectorySource(tmp_path)
        try:
            return await source.changes()
        finally:
            source.close()

    (tmp_path / "objects").mkdir()
    for document in chance.choices(OBJECTS, k=500):
        metadata = document["metadata"]
        file = tmp_path / "objects" / f"{document['kind']}.{metadata.get('namespace', '')}.{metadata['name']}.json"
        file.write_bytes(mutate.of_json(chance, document))
        carried(mesh.apply(asyncio.run(changes())).upserts)
        assert mesh.faults == {}
        assert all(row["state"] for row in mesh.policies())
        file.unlink()


@pytest.mark.parametrize("seed", range(2))
def test_annotations(tmp_path: Path, seed: int) -> None:
    """500 × 2 mutants of a pod's annotations: none leads to a path or a port that it may not."""
    chance = Random(seed)
    for _ in range(500):
        pod = json.loads(json.dumps(OBJECTS[0]))
        annotations = pod["metadata"]["annotations"]
        for name in chance.choices(list(ANNOTATIONS), k=3):
            annotations[name] = chance.choice([value for value in mutate.VALUES if isinstance(value, str)])
        mesh = Mesh("node1", "cluster.local", AnnotationPlaces())
        folder = tmp_path / "objects"
        folder.mkdir(exist_ok=True)
        (folder / "Pod.shop.web.json").write_text(json.dumps(pod))
        source = DirectorySource(tmp_path)
        carried(mesh.apply(asyncio.run(source.changes())).upserts)
        source.close()
        assert mesh.faults == {}
        for asking in mesh.asking_pods():
            assert asking.mount_at.isprintable()
            assert ".." not in asking.mount_at.split("/")
        for each in (*mesh.asking_pods(), *mesh.local_pods()):
            assert "\0" not in each.place.netns + each.place.cgroup
            (each.place.netns + each.place.cgroup).encode()


@pytest.mark.parametrize("seed", range(2))
def test_reviews(seed: int) -> None:
    """500 × 2 mutants of admission reviews: each is answered, or refused as no review."""
    chance = Random(seed)
    good = json.loads(body(POD))
    for _ in range(500):
        try:
            review = parse(mutate.of_json(chance, good))
            verdict = decide(review, labels("namespace", "default"), SETTINGS)
            assert orjson.loads(answer(review, verdict))["kind"] == "AdmissionReview"
        except BadReviewError:
            continue


KEY = ec.generate_private_key(ec.SECP256R1())
KEY_PEM = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
SAN = x509.ObjectIdentifier("2.5.29.17")
NAMES = (
    "3002a300",
    "3002a500",
    "30028800",
    "30048602fffe",
    "010203",
    "3003870101",
    "3002a000",
    "30820fff",
    "3000",
    "308006",
    "30060604ffffffff",
)
"""Subject alternative names that a library knows in part or not at all: x400Address, ediPartyName,
a registered ID of no length, …
"""


def encoded(der: bytes, what: str) -> bytes:
    return f"-----BEGIN {what}-----\n".encode() + base64.encodebytes(der) + f"-----END {what}-----\n".encode()


def csr(chance: Random) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if chance.random() < 0.5:
        names: x509.ExtensionType = x509.UnrecognizedExtension(SAN, bytes.fromhex(chance.choice(NAMES)))
    else:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(IDENTITY)])
    return (
        builder.add_extension(names, critical=chance.random() < 0.5)
        .sign(KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def certificate(chance: Random) -> bytes:
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, now, now + datetime.timedelta(days=1))
    names: x509.ExtensionType = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(IDENTITY)])
    if chance.random() < 0.5:
        names = x509.UnrecognizedExtension(SAN, bytes.fromhex(chance.choice(NAMES)))
    return (
        builder.add_extension(names, critical=True).sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    )


def text_of(chance: Random, der: bytes, what: str) -> bytes:
    """Mutate the content, or the PEM around it."""
    return (
        mutate.of_bytes(chance, encoded(der, what))
        if chance.random() < 0.2
        else encoded(mutate.of_bytes(chance, der), what)
    )


@pytest.mark.parametrize("seed", range(2))
def test_requests_for_certificates(seed: int) -> None:
    """750 × 2 mutants: a key that its owner proved to hold, or a refusal."""
    chance = Random(seed)
    for _ in range(750):
        try:
            public_key(text_of(chance, csr(chance), "CERTIFICATE REQUEST").decode("latin-1"), IDENTITY)
        except Refusal:
            continue


@pytest.mark.parametrize("seed", range(2))
def test_certificates(seed: int) -> None:
    """750 × 2 mutants, as a source's answer and as what is trusted."""
    chance = Random(seed)
    root = profiles.root("cluster.local", datetime.datetime.now(datetime.UTC).timestamp())
    roots = profiles.pem(root.certificate)
    for number in range(750):
        made = text_of(chance, certificate(chance), "CERTIFICATE")
        try:
            accept(
                IDENTITY,
                made,
                KEY_PEM if number % 4 else mutate.of_bytes(chance, KEY_PEM),
                roots if number % 2 else made,
                "cluster.local",
            )
        except IdentityError:
            pass
        try:
            trusted_roots(made)
        except IdentityError:
            continue
