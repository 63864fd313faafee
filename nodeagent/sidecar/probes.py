"""The kubelet's probes and hooks, which injection turns to the sidecar: it asks the application in the
kubelet's stead, past the pod's own mTLS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from nodeagent.errors import ConfigError
from nodeagent.istio import OWN_SOURCE
from nodeagent.probing import SourceAddress, by_grpc, by_http, by_tcp, judged
from nodeagent.resources.fields import PortNumber
from nodeagent.vocabulary import family_of

VARIABLE: Final = "NODEAGENT_APP_PROBES"


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


def target(path: str) -> str:
    """Return *path* as a request's target: as Go's net/url does for the kubelet, which takes one
    without a slash, or with spaces.
    """
    return quote(path if path.startswith("/") else f"/{path}", safe="/%?:@!$&'()*+,;=[]~")


class AppHttpHeader(_Section):
    name: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$")]
    value: Annotated[str, Field(pattern=r"^[^\x00\r\n]*$", max_length=4096)]


class AppHttpGet(_Section):
    port: PortNumber
    path: Annotated[str, AfterValidator(target), Field(max_length=4096)] = "/"
    host: str = ""
    scheme: Annotated[str, Field(pattern="^HTTPS?$")] = "HTTP"
    http_headers: Annotated[tuple[AppHttpHeader, ...], Field(max_length=64)] = ()


class AppTcpSocket(_Section):
    port: PortNumber
    host: str = ""


class AppGrpc(_Section):
    port: PortNumber
    service: Annotated[str, Field(max_length=253)] = ""


class AppProbe(_Section):
    """One probe: exactly one of ``httpGet``, ``tcpSocket`` and ``grpc``, with the port as a number."""

    http_get: AppHttpGet | None = None
    tcp_socket: AppTcpSocket | None = None
    grpc: AppGrpc | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 1

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.http_get, self.tcp_socket, self.grpc).count(None) != 2:
            raise ValueError("exactly one of httpGet, tcpSocket, grpc")
        return self


_CONTAINER: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_Path = Annotated[
    str,
    Field(pattern=f"^/app-(health/{_CONTAINER}/(livez|readyz|startupz)|lifecycle/{_CONTAINER}/(poststartz|prestopz))$"),
]
_TABLE: Final = TypeAdapter(dict[_Path, AppProbe])


def from_environment(environment: Mapping[str, str]) -> dict[str, AppProbe]:
    """Return path -> probe from NODEAGENT_APP_PROBES; none when it is not set. Raises ConfigError
    that names the field.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return {}
    try:
        return _TABLE.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"environment: {VARIABLE}: {'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r:.80}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"environment: {VARIABLE}: not JSON: {error}") from None


def refusal(table: Mapping[str, object]) -> str:
    """Return what :func:`from_environment` would say of *table*, path -> probe, empty where it takes it."""
    try:
        from_environment({VARIABLE: json.dumps(table)})
    except ConfigError as error:
        return str(error).removeprefix(f"environment: {VARIABLE}: ")
    return ""


async def check(probe: AppProbe, address: str) -> str:
    """Ask the application of the pod at *address*; return why the probe fails, empty if it succeeds."""
    return await judged(_asked(probe, address), probe.timeout_seconds)


async def _asked(probe: AppProbe, address: str) -> str:
    if probe.http_get is not None:
        get = probe.http_get
        headers = [(header.name, header.value) for header in get.http_headers]
        host = get.host or address
        return await by_http(
            host, get.port, scheme=get.scheme, path=get.path, headers=headers, source=_source(host, address)
        )
    if probe.grpc is not None:
        return await by_grpc(address, probe.grpc.port, probe.grpc.service, _source(address, address))
    assert probe.tcp_socket is not None, "a probe holds exactly one handler"
    host = probe.tcp_socket.host or address
    return await by_tcp(host, probe.tcp_socket.port, _source(host, address))


def _source(host: str, own: str) -> SourceAddress:
    """Return whence the sidecar connects to its application, so that the pod's rules let it
    through; None: *host* is another.
    """
    return (OWN_SOURCE[family_of(own)], 0) if host == own else None
