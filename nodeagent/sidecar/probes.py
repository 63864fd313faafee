"""The kubelet's probes, which injection turns to the sidecar: it asks the application in the kubelet's stead, past the pod's own mTLS.

Like the kubelet it verifies no certificate, takes 200 to 399 for success and follows no redirect. What an application answers is
bounded in time and bytes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from nodeagent import istio
from nodeagent.errors import ConfigError
from nodeagent.mesh.entries import Family
from nodeagent.resources.fields import PortNumber

VARIABLE: Final = "NODEAGENT_APP_PROBES"
MAX_HEAD: Final = 16 << 10
MAX_GRPC: Final = 64 << 10
_SERVING: Final = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus."""


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


def _target(path: str) -> str:
    """Return *path* as a request's target: as Go's net/url does for the kubelet, which takes one without a slash, or with spaces."""
    return quote(path if path.startswith("/") else f"/{path}", safe="/%?:@!$&'()*+,;=[]~")


class HttpHeader(_Section):
    name: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$")]
    value: Annotated[str, Field(pattern=r"^[^\x00\r\n]*$", max_length=4096)]


class HttpGet(_Section):
    port: PortNumber
    path: Annotated[str, AfterValidator(_target), Field(max_length=4096)] = "/"
    host: str = ""
    scheme: Annotated[str, Field(pattern="^HTTPS?$")] = "HTTP"
    http_headers: Annotated[tuple[HttpHeader, ...], Field(max_length=64)] = ()


class TcpSocket(_Section):
    port: PortNumber
    host: str = ""


class Grpc(_Section):
    port: PortNumber
    service: Annotated[str, Field(max_length=253)] = ""


class AppProbe(_Section):
    """One probe: exactly one of ``httpGet``, ``tcpSocket`` and ``grpc``, with the port as a number."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    grpc: Grpc | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 1

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.http_get, self.tcp_socket, self.grpc).count(None) != 2:
            raise ValueError("exactly one of httpGet, tcpSocket, grpc")
        return self


_Path = Annotated[str, Field(pattern=r"^/app-health/[a-z0-9]([-a-z0-9]*[a-z0-9])?/(livez|readyz|startupz)$")]
_TABLE: Final = TypeAdapter(dict[_Path, AppProbe])


def from_environment(environment: Mapping[str, str]) -> dict[str, AppProbe]:
    """Return path -> probe from NODEAGENT_APP_PROBES; none when it is not set. Raises ConfigError that names the field."""
    text = environment.get(VARIABLE, "")
    if not text:
        return {}
    try:
        return _TABLE.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"environment: {VARIABLE}: {'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r:.80}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"environment: {VARIABLE}: not JSON: {error}") from None


async def check(probe: AppProbe, address: str) -> str:
    """Ask the application of the pod at *address*; return why the probe fails, empty if it succeeds."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.http_get is not None:
                return await _http(probe.http_get, probe.http_get.host or address, address)
            if probe.grpc is not None:
                return await _grpc(probe.grpc, address)
            assert probe.tcp_socket is not None, "a probe holds exactly one handler"
            _, writer = await _connect(probe.tcp_socket.host or address, probe.tcp_socket.port, address)
            writer.transport.abort()
            return ""
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except (OSError, EOFError, asyncio.LimitOverrunError, h2.exceptions.ProtocolError) as error:
        return str(error) or type(error).__name__


async def _connect(host: str, port: int, own: str, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as the sidecar connects to its application, so that the pod's rules let it through. Raises OSError."""
    family: Family = 6 if ":" in own else 4
    source = (istio.OWN_SOURCE[family], 0) if host == own else None
    return await asyncio.open_connection(host, port, local_addr=source, ssl=tls, limit=MAX_HEAD)


async def _http(get: HttpGet, host: str, own: str) -> str:
    reader, writer = await _connect(host, get.port, own, _unverified() if get.scheme == "HTTPS" else None)
    try:
        headers = {"host": f"[{host}]:{get.port}" if ":" in host else f"{host}:{get.port}", "user-agent": "kube-probe/1.31", "accept": "*/*"}
        headers |= {header.name.lower(): header.value for header in get.http_headers} | {"connection": "close"}
        writer.write("".join([f"GET {get.path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode())
        line = (await reader.readuntil(b"\n")).split(maxsplit=2)
        if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not (line[1].isdigit() and len(line[1]) == 3):
            return f"not an HTTP answer: {b' '.join(line)[:80]!r}"
        return "" if 200 <= int(line[1]) < 400 else f"HTTP status {int(line[1])}"
    finally:
        writer.transport.abort()


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _grpc(grpc: Grpc, address: str) -> str:
    """grpc.health.v1.Health/Check over plaintext HTTP/2, by hand: a library would take a message of any length."""
    reader, writer = await _connect(address, grpc.port, address)
    try:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))  # any byte may stand in a field
        connection.initiate_connection()
        headers = {":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Check", ":authority": f"{address}:{grpc.port}"}
        connection.send_headers(1, [*headers.items(), ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "kube-probe/1.31")])
        service = grpc.service.encode()
        request = (b"\x0a" + bytes([len(service)]) + service if len(service) < 128 else b"\x0a" + _varint(len(service)) + service) if service else b""
        connection.send_data(1, struct.pack("!BI", 0, len(request)) + request, end_stream=True)
        return await _grpc_answer(connection, reader, writer)
    finally:
        writer.transport.abort()


async def _grpc_answer(connection: h2.connection.H2Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    body, said, taken = b"", dict[str, str](), 0
    while True:
        writer.write(connection.data_to_send())
        data = await reader.read(MAX_HEAD)
        taken += len(data)
        if not data or taken > MAX_GRPC:
            return "the connection ended before the answer" if not data else f"more than {MAX_GRPC} bytes of answer"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                said |= {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                return _health(said, body)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                return f"HTTP/2 error {event.error_code!r}"


def _health(said: Mapping[str, str], body: bytes) -> str:
    status = said.get("grpc-status", "")
    if said.get(":status") != "200" or status != "0":
        return f"HTTP status {said.get(':status', '')!r:.10}, gRPC status {status!r:.10}"
    # HealthCheckResponse { status = 1: varint }, in gRPC's frame of five bytes.
    serving = body[5:] == bytes([0x08, _SERVING])
    return "" if serving else "the service is not SERVING"


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7])
