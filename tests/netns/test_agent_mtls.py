"""Between nodes everything is TLS 1.3, and each side is who its certificate says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from tests.netns.world import about, address_of, ask, bracketed, cluster_ip, curl, growth, pod
from tests.waiting import eventually

CLIENT, SERVER = "spiffe://cluster.local/ns/default/sa/client", "spiffe://cluster.local/ns/default/sa/server"
MARKER = "this-must-not-be-read-on-the-wire"


@contextmanager
def wiretap(lab: Lab, path: Path, filter: str) -> Iterator[Path]:
    """Record what passes between the nodes meanwhile."""
    argv = ["tcpdump", "-i", "node1", "-U", "--immediate-mode", "-s", "0", "-w", str(path), filter]
    with lab.popen("underlay", argv, stderr=subprocess.PIPE, text=True) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            while "listening on" not in (line := tcpdump.stderr.readline()):
                assert line, "tcpdump ended"
            yield path
        finally:
            tcpdump.terminate()
            tcpdump.communicate(timeout=60)


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_can_be_read_between_the_nodes(mesh: Lab, tmp_path: Path, version: int) -> None:
    remote = address_of(mesh, "remote", version)
    with wiretap(mesh, tmp_path / "tap", f"host {remote}") as tap:
        url = f"http://{bracketed(cluster_ip(mesh, 'remote', version))}"
        assert curl(mesh, "client", "-d", MARKER, f"{url}/echo/{MARKER}", "-H", f"x-secret: {MARKER}").stdout == MARKER
        got = ask(
            mesh, "client", "dial", cluster_ip(mesh, "remote", version), 9000, "--send", MARKER, "--until", MARKER
        )
        assert got["received"] == MARKER
        eventually(lambda: tap.stat().st_size > 4000, "packets are recorded")
    recorded = tap.read_bytes()
    assert MARKER.encode() not in recorded
    assert b"\x17\x03\x03" in recorded  # TLS records with application data
    assert b"spiffe://" not in recorded  # in TLS 1.3 certificates are encrypted too
    assert b"istio" in recorded  # but the ClientHello's ALPN is not


def test_the_wiretap_would_have_seen_plaintext(mesh: Lab, tmp_path: Path) -> None:
    with wiretap(mesh, tmp_path / "tap", f"host {mesh.address('unmeshed')}") as tap:
        assert curl(mesh, "client", "-d", MARKER, f"http://{cluster_ip(mesh, 'unmeshed')}/echo").stdout == MARKER
        eventually(lambda: MARKER.encode() in tap.read_bytes(), "the marker is recorded")


def test_both_agents_tell_who_each_side_proved_to_be(mesh: Lab) -> None:
    near, far = growth(mesh, "node1"), growth(mesh, "node2")
    about(mesh, "client", f"http://{cluster_ip(mesh, 'remote')}")
    both = {
        "source_principal": CLIENT,
        "destination_principal": SERVER,
        "source_workload": "client",
        "destination_workload": "remote",
    }
    near.comes_to(1, "istio_requests_total", reporter="source", **both)
    far.comes_to(1, "istio_requests_total", reporter="destination", connection_security_policy="mutual_tls", **both)


def test_plaintext_from_outside_the_mesh_has_no_principal(mesh: Lab) -> None:
    counted = growth(mesh, "node2")
    seen = about(mesh, "plain", f"http://{cluster_ip(mesh, 'remote')}", "-H", f"x-forwarded-client-cert: URI={CLIENT}")
    assert "x-forwarded-client-cert" not in seen["headers"]
    plain = {"source_principal": "unknown", "connection_security_policy": "none", "destination_workload": "remote"}
    counted.comes_to(1, "istio_requests_total", reporter="destination", **plain)


def test_an_address_proves_nothing(mesh: Lab) -> None:
    """A plaintext client is told by its address only for the metrics; it gets no identity from it."""
    counted = growth(mesh, "node2")
    about(mesh, "plain", f"http://{mesh.address('remote')}:8080")
    counted.comes_to(
        1, "istio_requests_total", reporter="destination", source_workload="plain", source_principal="unknown"
    )


OWN_TLS = """
import http.server, ssl, sys
server = http.server.HTTPServer(("", 8443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/own/pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_an_applications_own_tls_passes_untouched(mesh: Lab, tmp_path: Path, node: str) -> None:
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=own",
        "-keyout",
        str(tmp_path / "key"),
        "-out",
        str(tmp_path / "cert"),
    ]
    subprocess.run(made, check=True, capture_output=True)
    (tmp_path / "pem").write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    (tmp_path / "server.py").write_text(OWN_TLS.replace("/etc/own", str(tmp_path)))
    https = "spec: {ports: [{name: https, port: 443, targetPort: 8443}], selector: {app: owntls}}"
    https = f"\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: owntls}}\n{https}\n"
    mesh.apply(text=pod("owntls", node, command=f"[{sys.executable}, {tmp_path}/server.py]") + https)
    eventually(lambda: "ready" in mesh.log("owntls"), "the server listens")
    for source in ("client", "plain"):
        for address in (f"{cluster_ip(mesh, 'owntls')}:443", f"{mesh.address('owntls')}:8443"):
            done = curl(mesh, source, "-kv", "-o", "/dev/null", "-w", "%{http_code}", f"https://{address}/")
            assert done.stdout == "200", done
            assert re.search(r"subject: CN=own", done.stderr)
    mesh.delete_pod("owntls", grace_seconds=0)
