"""Envoy's external authorization by HTTP, the client's side: may this request pass?

A check is a request with the method, the path and the Host of what it is about, and of its fields
those that were asked for. Its answer's status decides: 200 allows, 5xx is no answer, any other one
is the refusal, which the client gets. What of the answer's fields goes where, Istio's provider
settings say. The question and the verdict are pure; ``http_call.py`` carries them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final

from nodeagent.extension_providers import NOT_TOLD, EnvoyExtAuthzHttp, RequestBody
from nodeagent.policy.header_names import HeaderNames
from nodeagent.policy.substitutions import RequestAsTold, SubstitutedText
from nodeagent.proxy.external.bounds import CallBounds, CallError, CrowdedError
from nodeagent.proxy.external.fields import MAX_FIELDS, changeable, sound
from nodeagent.proxy.external.http_call import CheckAnswer, HttpCheck, HttpConnections
from nodeagent.proxy.external.model import CheckVerdict, Header, HttpFacts, Party, Resolve

PARTIAL: Final = "x-envoy-auth-partial-body"
REMOVE: Final = "x-envoy-auth-headers-to-remove"
"""A field of an answer that allows: names, with commas, of the request's fields to take away."""
_ALWAYS_TOLD: Final = "authorization"
_ALWAYS_ANSWERED: Final = ("location", "www-authenticate")
_NOT_HTTP: Final = "an envoyExtAuthzHttp provider cannot be asked about a connection that is not HTTP"


class CheckForm:
    """How one provider wants to be asked."""

    def __init__(self, settings: EnvoyExtAuthzHttp) -> None:
        told = settings.include_request_headers_in_check or settings.include_headers_in_check
        self._told = HeaderNames((*told, _ALWAYS_TOLD))
        self._prefix = settings.path_prefix
        more = settings.include_additional_headers_in_check
        self._more = [(name.lower(), SubstitutedText(more[name])) for name in sorted(more)]

    def about(self, source: Party, destination: Party, http: HttpFacts, sni: str) -> HttpCheck:
        """Return the check of the request *http* from *source* to *destination*."""
        fields = _merged(http.headers)
        found = [("host", http.host), ("content-length", str(len(http.body.data) if http.body is not None else 0))]
        replaced = frozenset([name for name, _ in self._more])
        found += [(name, value) for name, value in fields.items() if name in self._told and name not in replaced]
        if self._more:
            told = _as_told(source, destination, http, sni, fields)
            found += [(name, value) for name, text in self._more if (value := text.of(told).strip(" \t"))]
        if http.body is not None:
            found.append((PARTIAL, "true" if http.body.partial else "false"))
        return HttpCheck(
            _bytes(http.method),
            _bytes(self._prefix + http.path),
            _bytes(http.host),
            [(_bytes(name), _bytes(value)) for name, value in found],
            http.body.data if http.body is not None else b"",
        )


class Verdicts:
    """What one provider's answers mean."""

    def __init__(self, settings: EnvoyExtAuthzHttp) -> None:
        self._upstream = HeaderNames(settings.headers_to_upstream_on_allow)
        self._downstream = HeaderNames(settings.headers_to_downstream_on_allow)
        listed = settings.headers_to_downstream_on_deny
        self._refused = HeaderNames((*listed, *_ALWAYS_ANSWERED)) if listed else None
        """None: all."""

    def of(self, answer: CheckAnswer) -> CheckVerdict:
        """Return what *answer* says. Raises CallError when that is nothing."""
        if answer.status >= 500 and answer.status <= 599:
            raise CallError(f"the answer's status is {answer.status}")
        fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in answer.fields]
        if answer.status == 200:
            return self._allowed(fields, answer.fault)
        return self._denied(answer, fields)

    def _allowed(self, fields: list[Header], fault: str) -> CheckVerdict:
        if fault:
            raise CallError(f"there is no whole answer: {fault}")
        removed = _removed(",".join([value for name, value in fields if name == REMOVE]))
        put = sound(field for field in fields if field[0] in self._upstream and field[0] != REMOVE)
        # as Envoy sets them: the last of a name stays, and what is removed is removed after that
        last = {name: value for name, value in put if name not in removed}
        told = sound(field for field in fields if field[0] in self._downstream and field[0] != REMOVE)
        return CheckVerdict(
            True, set=tuple(last.items()), remove=removed, answer=tuple([(name, value, "add") for name, value in told])
        )

    def _denied(self, answer: CheckAnswer, fields: list[Header]) -> CheckVerdict:
        """A no stays one, whatever is wrong with the rest of it: without an answer the request might pass."""
        status = answer.status if 200 <= answer.status <= 599 else 403
        bare = 403 if 300 <= status <= 399 else status  # without its headers a redirect leads nowhere
        if answer.fault:
            return CheckVerdict(False, status=bare, failed=f"its refusal is not whole: {answer.fault}")
        refused = self._refused
        try:
            headers = sound(
                field for field in fields if (refused is None or field[0] in refused) and field[0] != REMOVE
            )
        except CallError as error:
            return CheckVerdict(False, status=bare, failed=str(error))
        return CheckVerdict(False, status=status, headers=headers, body=answer.body)


class HttpAuthz:
    """One provider as a worker asks it."""

    def __init__(self, name: str, settings: EnvoyExtAuthzHttp, resolve: Resolve) -> None:
        self._settings = settings
        self.body: RequestBody | None = settings.include_request_body_in_check
        """What it wants to see of requests' bodies."""
        self._questions = CheckForm(settings)
        self._verdicts = Verdicts(settings)
        self._bounds = CallBounds(name, settings.service, settings.port)
        self._connections = HttpConnections(settings.service, settings.port, resolve)

    async def check(
        self, source: Party, destination: Party, http: HttpFacts | None, sni: str = "", asker: str = ""
    ) -> CheckVerdict:
        """Ask for the pod *asker* about a request; a connection that is none, *http* is None, is refused.

        Never raises; what the provider does not answer the settings do.
        """
        if http is None:
            return CheckVerdict(False, status=self._settings.status_on_error, failed=_NOT_HTTP)
        question = self._questions.about(source, destination, http, sni)
        try:
            return await self._bounds.run(self._settings.timeout, partial(self._asked, question, asker), asker)
        except CallError as error:
            opens = self._settings.fail_open and not isinstance(error, CrowdedError)
            return CheckVerdict(opens, status=self._settings.status_on_error, failed=str(error))

    def close(self) -> None:
        self._connections.close()

    async def _asked(self, question: HttpCheck, asker: str, limit: asyncio.Timeout) -> CheckVerdict:
        return self._verdicts.of(await self._connections.ask(question, asker, limit))


def _merged(headers: Iterable[Header]) -> dict[str, str]:
    """Return the fields that may be told, by name in lower case; several lines as one (RFC 9110
    section 5.3, for cookies RFC 6265 section 4.2.1).
    """
    merged: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in NOT_TOLD or lower.startswith(":"):
            continue
        separator = "; " if lower == "cookie" else ","
        merged[lower] = f"{merged[lower]}{separator}{value}" if lower in merged else value
    return merged


def _as_told(source: Party, destination: Party, http: HttpFacts, sni: str, fields: dict[str, str]) -> RequestAsTold:
    return RequestAsTold(
        method=http.method,
        path=http.path,
        authority=http.host,
        scheme=http.scheme,
        protocol=http.version,
        header=fields.get,
        sni=sni,
        remote_address=source.address,
        remote_port=source.port,
        remote_identity=_identity(source),
        local_address=destination.address,
        local_port=destination.port,
        local_identity=_identity(destination),
    )


def _identity(party: Party) -> str:
    return f"spiffe://{party.principal}" if party.principal else ""


def _removed(listed: str) -> tuple[str, ...]:
    """Return the names of a list that may be taken away. Raises CallError."""
    given = [name for each in listed.split(",") if (name := each.strip(" \t"))]
    if len(given) > MAX_FIELDS:
        raise CallError(f"the answer takes away more than {MAX_FIELDS} header fields")
    return tuple([name for each in given if (name := changeable(each))])


def _bytes(text: str) -> bytes:
    return text.encode("latin-1", "replace")
