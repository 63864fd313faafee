"""Real servers for logs, which ``make sinks`` builds: OpenSearch, nginx in front of it, and OpenTelemetry's
receivers of OTLP, Fluentd's forward protocol and Loki's push API (``collector/``).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.waiting import eventually

SEARCH_PORT = 19200
NGINX_PORT = 19443
NGINX = """
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 64k;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    auth_basic search;
    auth_basic_user_file {folder}/users;
    location / {{
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "";
      proxy_pass http://127.0.0.1:{search};
    }}
  }}
}}
"""

OTLP_PORT = 19317
FORWARD_PORT = 19224
LOKI_PORT = 19100
RECEIVERS = """
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{otlp}"}}}}}}
  fluentforward: {{endpoint: "127.0.0.1:{forward}"}}
  loki: {{protocols: {{http: {{endpoint: "127.0.0.1:{loki}"}}}}, use_incoming_timestamp: true}}
exporters:
  file/otlp: {{path: "{folder}/otlp", append: true, flush_interval: 50ms}}
  file/forward: {{path: "{folder}/forward", append: true, flush_interval: 50ms}}
  file/loki: {{path: "{folder}/loki", append: true, flush_interval: 50ms}}
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines:
    logs/otlp: {{receivers: [otlp], exporters: [file/otlp]}}
    logs/forward: {{receivers: [fluentforward], exporters: [file/forward]}}
    logs/loki: {{receivers: [loki], exporters: [file/loki]}}
"""


class Receivers:
    """OpenTelemetry's; what each has received stands in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start them, and wait until they listen."""
        assert "RECEIVERS" in os.environ, "run `make sinks`, which builds the receivers and says where they are"
        ports = {"otlp": OTLP_PORT, "forward": FORWARD_PORT, "loki": LOKI_PORT}
        settings = self._folder / "receivers.yaml"
        settings.write_text(RECEIVERS.format(folder=self._folder, **ports))
        with (self._folder / "log").open("ab") as log:
            command = [os.environ["RECEIVERS"], "--config", f"file:{settings}"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(lambda: all(map(_listens, ports.values())), f"they listen: {self._folder / 'log'}", 120)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End them."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def records(self, protocol: str) -> list[tuple[dict[str, Any], Any]]:
        """Return what came by *protocol*: the attributes of its resource and its own, and its body."""
        path = self._folder / protocol
        rows = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found: list[tuple[dict[str, Any], Any]] = []
        for resource in (each for row in rows for each in json.loads(row)["resourceLogs"]):
            whose = _attributes(resource.get("resource", {}))
            for scope in resource["scopeLogs"]:
                found += [(whose | _of_its_own(each), _value(each["body"])) for each in scope["logRecords"]]
        return found


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def _attributes(holder: Any) -> dict[str, Any]:
    return {each["key"]: _value(each["value"]) for each in holder.get("attributes", ())}


def _of_its_own(record: Any) -> dict[str, Any]:
    return {**_attributes(record), "time": int(record.get("timeUnixNano", 0))}


def _value(value: Any) -> Any:
    """Return a value of OTLP's JSON as it is."""
    match value:
        case {"kvlistValue": holder}:
            return {each["key"]: _value(each["value"]) for each in holder.get("values", ())}
        case {"intValue": number}:
            return int(number)
        case _:
            return next(iter(value.values()), None)


@contextmanager
def receiving(folder: Path) -> Iterator[Receivers]:
    """The receivers."""
    receivers = Receivers(folder)
    try:
        receivers.start()
        yield receivers
    finally:
        receivers.stop(signal.SIGKILL)


class Search:
    """An OpenSearch node whose data stay in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert "SEARCH" in os.environ, "run `make sinks`, which builds OpenSearch and says where it is"
        built = Path(os.environ["SEARCH"])
        (self._folder / "config").mkdir(parents=True, exist_ok=True)
        classes = f"{built}/target/classes:{(built / 'classpath').read_text()}"
        with (self._folder / "log").open("ab") as log:
            command = [
                "java",
                "-Xmx384m",
                "-XX:-UseContainerSupport",
                "-cp",
                classes,
                "Search",
                str(self._folder),
                str(SEARCH_PORT),
            ]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._up, f"OpenSearch answers: {self._folder / 'log'}", 240)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer to a request, as JSON."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{SEARCH_PORT}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def documents(self, index: str) -> list[Any]:
        """Return the documents of *index*, by their ids."""
        self.ask("POST", f"/{index}/_refresh")
        found = self.ask("GET", f"/{index}/_search?size=10000")["hits"]["hits"]
        return [each["_source"] for each in sorted(found, key=lambda each: str(each["_id"]))]

    def count(self, index: str) -> int:
        """Return how many documents *index* has."""
        self.ask("POST", f"/{index}/_refresh")
        return int(self.ask("GET", f"/{index}/_count")["count"])

    def _up(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError((self._folder / "log").read_text()[-2000:])
        try:
            self.ask("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s")
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            return False
        return True


@contextmanager
def searching(folder: Path) -> Iterator[Search]:
    """An OpenSearch node."""
    search = Search(folder)
    try:
        search.start()
        yield search
    finally:
        search.stop(signal.SIGKILL)


@contextmanager
def in_front(folder: Path, password: str) -> Iterator[Path]:
    """nginx with TLS and a login for the user ``agent``; yields the file of the CA."""
    _certificates(folder)
    (folder / "users").write_text(f"agent:{{PLAIN}}{password}\n")
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=NGINX_PORT, search=SEARCH_PORT))
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-g", "user root;"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
        try:
            eventually((folder / "nginx.pid").exists, "nginx has started")
            yield folder / "ca.pem"
        finally:
            nginx.terminate()


def _certificates(folder: Path) -> None:
    """A CA, and a certificate for localhost."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])

    def made(subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(extension, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(made(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=None)))
    (folder / "server.pem").write_bytes(made(x509.Name([]), key, names))
    private = serialization.PrivateFormat.PKCS8
    encoded = key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    (folder / "server.key").write_bytes(encoded)
    ssl.create_default_context(cafile=str(folder / "ca.pem"))
