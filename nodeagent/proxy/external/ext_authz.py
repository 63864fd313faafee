"""envoy.service.auth.v3, the client's side: may this request, or this connection, pass?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodeagent.config import EnvoyExtAuthzGrpc
from nodeagent.protocols.envoy_auth_pb2 import AttributeContext, CheckRequest, CheckResponse
from nodeagent.protocols.envoy_core_pb2 import HeaderValueOption
from nodeagent.proxy.external.call import Caller, CallError
from nodeagent.proxy.external.fields import MAX_FIELDS, changeable, read, utf8
from nodeagent.proxy.external.model import Header, HttpFacts, Party, Resolve, Verdict

PATH: Final = "/envoy.service.auth.v3.Authorization/Check"


class ExtAuthz:
    """One provider as a worker asks it."""

    def __init__(self, name: str, settings: EnvoyExtAuthzGrpc, resolve: Resolve) -> None:
        self._settings = settings
        self._caller = Caller(name, settings.service, settings.port, PATH, resolve)

    async def check(self, source: Party, destination: Party, http: HttpFacts | None, sni: str = "") -> Verdict:
        """Ask about a request, or about a connection when *http* is None. Never raises; what the provider does not answer the settings do."""
        try:
            request = CheckRequest(attributes=_attributes(source, destination, http, sni))
            return _verdict(await self._caller.call(request, CheckResponse, self._settings.timeout))
        except CallError as error:
            return Verdict(self._settings.fail_open, status=self._settings.status_on_error, failed=str(error))

    def close(self) -> None:
        self._caller.close()


def _attributes(source: Party, destination: Party, http: HttpFacts | None, sni: str) -> AttributeContext:
    attributes = AttributeContext()
    for party, peer in ((source, attributes.source), (destination, attributes.destination)):
        peer.address.socket_address.address, peer.address.socket_address.port_value = party.address, party.port
        peer.principal = f"spiffe://{party.principal}" if party.principal else ""
    if sni:
        attributes.tls_session.sni = utf8(sni)
    attributes.request.time.GetCurrentTime()
    if http is not None:
        asked = attributes.request.http
        asked.method, asked.path, asked.host, asked.scheme = utf8(http.method), utf8(http.path), utf8(http.host), http.scheme
        asked.protocol = http.version
        # As Envoy has them: pseudo-headers among the others, lines of one name joined, Host as :authority.
        merged = {":method": http.method, ":path": http.path, ":authority": http.host, ":scheme": http.scheme}
        for name, value in http.headers:
            lower = name.lower()
            if lower != "host" and not lower.startswith(":"):
                merged[lower] = f"{merged[lower]},{value}" if lower in merged else value
        asked.id = utf8(merged.get("x-request-id", ""))
        length = merged.get("content-length", "")
        asked.size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else -1 if "transfer-encoding" in merged else 0
        for lower, value in merged.items():
            asked.headers[utf8(lower)] = utf8(value)
    return attributes


def _verdict(answer: CheckResponse) -> Verdict:
    """Translate *answer*. Status OK alone allows; a body that contradicts it is not one that allows. Raises CallError."""
    if answer.status.code == 0 and not answer.HasField("denied_response"):
        ok = answer.ok_response
        put, added = _put(ok.headers)
        if len(ok.headers_to_remove) > MAX_FIELDS:
            raise CallError(f"the answer takes away more than {MAX_FIELDS} header fields")
        removed = tuple(name for given in ok.headers_to_remove if (name := changeable(given)))
        return Verdict(True, set=put, append=added, remove=removed, headers=read(option.header for option in ok.response_headers_to_add))
    denied = answer.denied_response
    status = denied.status.code if 200 <= denied.status.code <= 599 else 403
    return Verdict(False, status=status, headers=read(option.header for option in denied.headers), body=denied.body.encode())


def _put(options: Sequence[HeaderValueOption]) -> tuple[tuple[Header, ...], tuple[Header, ...]]:
    """Return fields to set and fields to append. In this protocol ``append`` is false unless it is given, so that a client's own field does not stay."""
    appended = [option for option in options if option.append.value]
    return read(option.header for option in options if not option.append.value), read(option.header for option in appended)
