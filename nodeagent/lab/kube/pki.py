"""A cluster's keys and certificates, and the kubeconfigs that go with them.

Made anew for every cluster and good for ten days; nothing of it is for a cluster that lasts.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeagent.lab.kube.layout import API, SERVICES, WIRE, KubeLayout, KubeNode

DAYS: Final = 10
ADMIN: Final = "lab-admin"
"""The administrator's token."""
_SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
_NAMES: Final = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


@dataclass(frozen=True, slots=True)
class _Root:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def token(node: KubeNode) -> str:
    """Return the token of *node*'s kubelet."""
    return f"lab-{node.name}"


def write(layout: KubeLayout, nodes: Sequence[KubeNode]) -> None:
    """Write everything into the layout's folder ``pki``, and the kubeconfigs beside it."""
    layout.pki.mkdir()
    root = _root()
    (layout.pki / "ca.crt").write_bytes(root.certificate.public_bytes(serialization.Encoding.PEM))
    addresses: list[IPv4Address | IPv6Address] = [WIRE[0][1], WIRE[1][1], SERVICES[0][1], SERVICES[1][1]]
    _issue(layout.pki / "apiserver", root, "kube-apiserver", [], _SERVER, addresses)
    # What the API server shows a kubelet when it fetches logs or runs a command in a pod.
    _issue(layout.pki / "kubelet-client", root, "kube-apiserver-kubelet-client", ["system:masters"], _CLIENT, [])
    accounts = rsa.generate_private_key(65537, 2048)
    _write_key(layout.pki / "accounts.key", accounts)
    lines = [f'{ADMIN},admin,1,"system:masters"']
    lines += [f'{token(node)},system:node:{node.name},{node.name},"system:nodes"' for node in nodes]
    (layout.pki / "tokens.csv").write_text("\n".join(lines) + "\n")
    layout.admin.write_text(kubeconfig(layout, "admin", ADMIN))
    for node in nodes:
        (layout.node(node.name) / "kubelet.conf").write_text(
            kubeconfig(layout, f"system:node:{node.name}", token(node))
        )


def kubeconfig(layout: KubeLayout, user: str, with_token: str, server: str = API) -> str:
    """Return a kubeconfig with which *user* comes with a token to *server*."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [
            {"name": "lab", "cluster": {"server": server, "certificate-authority": str(layout.pki / "ca.crt")}}
        ],
        "users": [{"name": user, "user": {"token": with_token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
    }
    return json.dumps(document, indent=1)


def _root() -> _Root:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("kubernetes", []).issuer_name(_name("kubernetes", [])).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return _Root(builder.sign(key, hashes.SHA256()), key)


def _issue(
    path: Path,
    root: _Root,
    name: str,
    groups: Sequence[str],
    use: x509.ObjectIdentifier,
    addresses: Sequence[IPv4Address | IPv6Address],
) -> None:
    """Write certificate and key for *name*, as ``path.crt`` and ``path.key``."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, groups).issuer_name(root.certificate.subject).public_key(key.public_key())
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    if addresses:
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in _NAMES]
        names += [x509.IPAddress(each) for each in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(root.key, hashes.SHA256())
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(path.with_suffix(".key"), key)


def _builder(name: str, groups: Sequence[str]) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name, groups))
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=DAYS))
    )


def _name(name: str, groups: Sequence[str]) -> x509.Name:
    """Return the name by which Kubernetes knows a user: common name, and organizations as groups."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
