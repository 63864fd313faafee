"""envoy.service.auth.v3, the client's side: may this request, or this connection, pass?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nodeagent.extension_providers import EnvoyExtAuthzGrpc, RequestBody
from nodeagent.protocols.envoy_auth_pb2 import AttributeContext, CheckRequest, CheckResponse
from nodeagent.protocols.envoy_core_pb2 import HeaderValueOption
from nodeagent.proxy.external.bounds import CallError, CrowdedError
from nodeagent.proxy.external.call import ProviderCalls
from nodeagent.proxy.external.fields import MAX_FIELDS, changeable, parameter, read, utf8
from nodeagent.proxy.external.model import AnswerAction, AnswerField, CheckVerdict, Header, HttpFacts, Party, Resolve

PATH: Final = "/envoy.service.auth.v3.Authorization/Check"
PARTIAL: Final = "x-envoy-auth-partial-body"
"""Told with a body: whether that is only its beginning. A client's own is not passed on to the authorizer."""
_Option = HeaderValueOption
_ORDER: Final[tuple[AnswerAction, ...]] = ("add", "set", "add_if_absent", "set_if_present")
"""In which order Envoy puts fields on the application's answer."""
_ACTIONS: Final[dict[int, AnswerAction]] = {
    _Option.APPEND_IF_EXISTS_OR_ADD: "add", _Option.OVERWRITE_IF_EXISTS_OR_ADD: "set",
    _Option.ADD_IF_ABSENT: "add_if_absent", _Option.OVERWRITE_IF_EXISTS: "set_if_present",
}  # fmt: skip


class ExtAuthz:
    """One provider as a worker asks it."""

    def __init__(self, name: str, settings: EnvoyExtAuthzGrpc, resolve: Resolve) -> None:
        self._settings = settings
        self.body: RequestBody | None = settings.include_request_body_in_check
        """What it wants to see of requests' bodies."""
        self._calls = ProviderCalls(name, settings.service, settings.port, PATH, resolve)

    async def check(
        self, source: Party, destination: Party, http: HttpFacts | None, sni: str = "", asker: str = ""
    ) -> CheckVerdict:
        """Ask for the pod *asker* about a request, or about a connection when *http* is None.

        Never raises; what the provider does not answer the settings do.
        """
        try:
            request = CheckRequest(attributes=_attributes(source, destination, http, sni, self.body))
            return _verdict(await self._calls.call(request, CheckResponse, self._settings.timeout, asker))
        except CallError as error:
            opens = self._settings.fail_open and not isinstance(error, CrowdedError)
            return CheckVerdict(opens, status=self._settings.status_on_error, failed=str(error))

    def close(self) -> None:
        self._calls.close()


def _attributes(
    source: Party, destination: Party, http: HttpFacts | None, sni: str, body: RequestBody | None
) -> AttributeContext:
    attributes = AttributeContext()
    for party, peer in ((source, attributes.source), (destination, attributes.destination)):
        peer.address.socket_address.address = party.address
        peer.address.socket_address.port_value = party.port
        peer.principal = f"spiffe://{party.principal}" if party.principal else ""
    if sni:
        attributes.tls_session.sni = utf8(sni)
    attributes.request.time.GetCurrentTime()
    if http is not None:
        _tell(attributes.request.http, http, body)
    return attributes


def _tell(asked: AttributeContext.HttpRequest, http: HttpFacts, body: RequestBody | None) -> None:
    """Put into *asked* what is told of a request; *body*: what the provider wants to see of it."""
    asked.method = utf8(http.method)
    asked.path = utf8(http.path)
    asked.host = utf8(http.host)
    asked.scheme = http.scheme
    asked.protocol = http.version
    # As Envoy has them: pseudo-headers among the others, lines of one name joined, Host as
    # :authority.
    merged = {":method": http.method, ":path": http.path, ":authority": http.host, ":scheme": http.scheme}
    for name, value in http.headers:
        lower = name.lower()
        if lower not in ("host", PARTIAL) and not lower.startswith(":"):
            merged[lower] = f"{merged[lower]},{value}" if lower in merged else value
    asked.id = utf8(merged.get("x-request-id", ""))
    asked.size = _size(merged)
    if http.body is not None:
        if body is not None and body.pack_as_bytes:
            asked.raw_body = http.body.data
        else:
            asked.body = http.body.data.decode("utf-8", "replace")
        merged[PARTIAL] = "true" if http.body.partial else "false"
    for lower, value in merged.items():
        asked.headers[utf8(lower)] = utf8(value)


def _size(fields: Mapping[str, str]) -> int:
    """Return the bytes of a request's body by its *fields*; -1: it does not say, 0: it has none."""
    length = fields.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 19:
        return int(length)
    return -1 if "transfer-encoding" in fields else 0


def _verdict(answer: CheckResponse) -> CheckVerdict:
    """Translate *answer*. Status OK alone allows; a body that contradicts it is not one that
    allows. Raises CallError.
    """
    if answer.status.code == 0 and not answer.HasField("denied_response"):
        ok = answer.ok_response
        put, added = _put(ok.headers)
        if len(ok.headers_to_remove) > MAX_FIELDS:
            raise CallError(f"the answer takes away more than {MAX_FIELDS} header fields")
        removed = tuple(name for given in ok.headers_to_remove if (name := changeable(given)))
        if len(ok.query_parameters_to_set) + len(ok.query_parameters_to_remove) > MAX_FIELDS:
            raise CallError(f"the answer changes more than {MAX_FIELDS} query parameters")
        return CheckVerdict(
            True, set=put, append=added, remove=removed, answer=_answer(ok.response_headers_to_add),
            query_set=tuple(parameter(each.key, each.value) for each in ok.query_parameters_to_set),
            query_remove=tuple(parameter(key, "")[0] for key in ok.query_parameters_to_remove),
        )  # fmt: skip
    denied = answer.denied_response
    status = denied.status.code if 200 <= denied.status.code <= 599 else 403
    try:
        return CheckVerdict(
            False, status=status, headers=read(option.header for option in denied.headers), body=denied.body.encode()
        )
    except CallError as error:
        # A no all the same: without an answer the request might pass, and the field may hold what
        # the client wrote.
        return CheckVerdict(False, status=status, failed=str(error))


def _put(options: Sequence[HeaderValueOption]) -> tuple[tuple[Header, ...], tuple[Header, ...]]:
    """Return fields to set and fields to append. In this protocol ``append`` is false unless it is
    given, so that a client's own field does not stay.
    """
    appended = [option for option in options if option.append.value]
    return read(option.header for option in options if not option.append.value), read(
        option.header for option in appended
    )


def _answer(options: Sequence[HeaderValueOption]) -> tuple[AnswerField, ...]:
    """Return the fields for the application's answer. Here ``append`` is asked first, and then the
    action, which is to add unless it is given.
    """
    found: list[AnswerField] = []
    for option in options:
        action = _action(option)
        found += [(name, value, action) for name, value in read([option.header])]
    if len(found) > MAX_FIELDS:
        raise CallError(f"the answer holds more than {MAX_FIELDS} header fields")
    return tuple(sorted(found, key=lambda field: _ORDER.index(field[2])))


def _action(option: HeaderValueOption) -> AnswerAction:
    if option.HasField("append"):
        return "add" if option.append.value else "set"
    return _ACTIONS.get(option.append_action, "add")
