"""The error tree, and the reasons for which traffic is refused.

Every exception that leaves a package is one of these: third-party exceptions are translated at the
boundary. A message names what went wrong, the likely cause and the next step; it never holds a
secret.
"""

from __future__ import annotations

import errno
import logging
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80
log = logging.getLogger("nodeagent.errors")


class NodeagentError(Exception):
    """Something a user can act on; the command line prints it on one line and exits with 1."""


class ConfigError(NodeagentError):
    """A file, field or value is wrong; the last good configuration stays in force."""


class ResourceError(ConfigError):
    """A Kubernetes or Istio document is wrong: says file, document, field, value and what is allowed."""


class InjectionError(NodeagentError):
    """A pod cannot be given a sidecar, or a template is wrong: the message begins with the field's
    path, and says its value and what is allowed.
    """


class KernelError(NodeagentError):
    """The kernel refused something that the data plane needs."""


class PodDoingError(KernelError):
    """A pod cannot be captured for what its own processes do: nothing is wrong
    with the node.
    """


class LabError(NodeagentError):
    """The lab cluster could not be made, changed or removed."""


class PodError(LabError):
    """A pod of the lab did not become ready, or did not stay it."""


class IdentityError(NodeagentError):
    """A certificate, key or trust bundle is missing, does not match or could not be issued."""


class AwaitedError(IdentityError):
    """There is no certificate yet, and nothing has failed: it is being asked for."""


class ControlError(NodeagentError):
    """The running daemon could not be reached, or answered with an error."""


def shown(value: object) -> str:
    """Return *value* from a document of others as messages show it: on one line, printable, at most
    80 characters, whatever its depth.
    """
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unread(path: Path | str, error: OSError | UnicodeError, absent: str = "is its name right?") -> str:
    """Say that the file *path* cannot be read, why, and what to do; *absent*: where it is not there."""
    if isinstance(error, UnicodeError):
        return f"{path}: cannot be read: it is no UTF-8: is it a text file?"
    steps = {
        errno.ENOENT: absent,
        errno.ENOTDIR: absent,
        errno.EACCES: "may this user read it?",
        errno.EISDIR: "a file is expected",
    }
    step = steps.get(error.errno or 0, "")
    return f"{path}: cannot be read: {error.strerror or error}{f'; {step}' if step else ''}"


def in_quotes(value: object) -> str:
    """Return what to do where a text is expected and YAML made *value* of it; empty: it is no such value."""
    return ": put it in quotation marks" if isinstance(value, bool | int | float) else ""


@contextmanager
def translated(to: type[NodeagentError], what: str) -> Iterator[None]:
    """Let only errors of this tree leave the block: whatever else a reader or a library raises
    there becomes a *to* that begins with *what*.

    For what others send: one document or answer is at fault, never the process. The traceback is
    logged for debugging.
    """
    try:
        yield
    except NodeagentError:
        raise
    except BaseException as error:
        # A panic of a library in Rust (cryptography) is no Exception to Python.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        log.debug("%s", what, exc_info=error)
        raise to(f"{what}: {type(error).__name__}: {shown(str(error))}") from None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request or connection did not get its answer from the application.

    ``flag`` is Envoy's response flag, as Istio's metrics and access log carry it; ``details`` its
    response code details; ``hint`` the likely cause and the next step, for the one who reads the
    5xx body. ``body`` stands in its stead where Envoy's words are part of the interface, or an
    authorizer's; ``headers`` go with the answer.
    """

    code: str
    status: int
    flag: str
    details: str
    hint: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    denies: bool = False
    """Somebody's rule says no; otherwise something failed."""
    policy: str = ""
    """The rule's name (``namespace/name``, or a provider's), where one alone decided."""


BAD_REQUEST = Reason(
    "bad_request", 400, "DPE", "http1.codec_error", "the request is not valid HTTP/1.1 or its length is ambiguous"
)
HEADERS_TOO_LARGE = Reason(
    "headers_too_large",
    431,
    "DPE",
    "http1.headers_too_large",
    "the request's headers exceed proxy.limits.headerBytes or headerCount",
)
HTTP2_MALFORMED = Reason(
    "http2_malformed",
    400,
    "DPE",
    "http2.violation.of.messaging.rule",
    "what the client sent on the stream is no message of HTTP/2 (RFC 9113 section 8.1.1), or could be read in two ways",
)
HTTP2_BROKEN = Reason(
    "http2_broken",
    0,
    "DPE",
    "http2.protocol_violation",
    "the client broke a rule of HTTP/2 that ends the connection, sent too much that moves no request forward, or left"
    " more untaken than all may (heldBytesPerPod)",
)
CONNECT_REFUSED = Reason(
    "connect_refused",
    403,
    "DPE",
    "http2.connect_not_supported",
    "CONNECT is not carried: connect to the port itself; WebSockets go over HTTP/1.1",
)
NO_ENDPOINTS = Reason(
    "no_endpoints",
    503,
    "UH",
    "no_healthy_upstream",
    "the Service has no ready endpoint: compare its selector with the pods' labels and readiness",
)
CONNECT_FAILED = Reason(
    "connect_failed",
    503,
    "UF",
    "upstream_reset_before_response_started{connection_failure}",
    "nothing listens at the endpoint, or a NetworkPolicy or firewall rejects the connection",
)
CONNECT_TIMEOUT = Reason(
    "connect_timeout",
    503,
    "UF,URX",
    "upstream_reset_before_response_started{connection_timeout}",
    "the endpoint does not answer: does a NetworkPolicy forbid the connection, is the pod's node reachable?",
)
STREAMS_PER_POD = Reason(
    "streams_per_pod",
    503,
    "UO",
    "overflow",
    "as many requests over HTTP/2 are under way at the pod as proxy.limits.streamsPerPod allows",
    denies=True,
)
HELD_PER_POD = Reason(
    "held_per_pod",
    503,
    "UO",
    "overflow",
    "more of what clients sent waits at the pod than proxy.limits.heldBytesPerPod allows, most of it this client's:"
    " are its endpoints reached?",
    denies=True,
)
STREAMS_EXHAUSTED = Reason(
    "streams_exhausted",
    503,
    "UO",
    "overflow",
    "too many requests wait for a stream of the endpoint, which takes few at once (SETTINGS_MAX_CONCURRENT_STREAMS)",
)
UPSTREAM_TLS = Reason(
    "upstream_tls",
    503,
    "UF",
    "upstream_reset_before_response_started{tls_error}",
    "the peer's certificate was not accepted: compare trust roots and the expected identity",
)
NO_CERTIFICATE = Reason(
    "no_certificate",
    503,
    "UF",
    "upstream_reset_before_response_started{no_certificate}",
    "the pod has no certificate yet, so it neither asks nor answers by mTLS: is the authority reachable? "
    "See nodeagent get pods",
)
UPSTREAM_RESET = Reason(
    "upstream_reset",
    503,
    "UC",
    "upstream_reset_before_response_started{connection_termination}",
    "the application closed the connection before it answered",
)
UPSTREAM_PROTOCOL = Reason(
    "upstream_protocol",
    502,
    "UPE",
    "upstream_reset_before_response_started{protocol_error}",
    "the application's answer is not valid HTTP of the version in which it was asked: is its port declared right?",
)
REQUEST_TIMEOUT = Reason(
    "request_timeout", 504, "UT", "response_timeout", "the application did not answer within proxy.timeouts.request"
)
DEADLINE = Reason(
    "deadline",
    504,
    "DT",
    "max_duration_timeout",
    "the time that the client gave the call (grpc-timeout) is over: is the application slow, or the time short?",
)
DOWNSTREAM_GONE = Reason(
    "downstream_gone",
    0,
    "DC",
    "downstream_remote_disconnect",
    "the client closed the connection before the answer was complete",
)
DOWNSTREAM_TIMEOUT = Reason(
    "downstream_timeout", 408, "SI", "stream_idle_timeout", "the client did not finish its request in time"
)
PLAINTEXT_REFUSED = Reason(
    "plaintext_refused",
    403,
    "NR",
    "filter_chain_not_found",
    "the workload is STRICT and the peer spoke plaintext: is the client enrolled?",
    denies=True,
)
PROBE_REFUSED = Reason(
    "probe_refused",
    403,
    "NR",
    "filter_chain_not_found",
    "the workload is STRICT and this is neither a probe nor a scrape that the pod declares",
    denies=True,
)
NOT_HBONE = Reason(
    "not_hbone",
    403,
    "NR",
    "filter_chain_not_found",
    "port 15008 of a pod takes HBONE alone (mTLS with ALPN h2), by proxy.hbone: an application that listens there "
    "needs another port, or traffic.sidecar.istio.io/excludeInboundPorts",
    denies=True,
)
HBONE_MALFORMED = Reason(
    "hbone_malformed",
    400,
    "DPE",
    "hbone.malformed",
    "what came over HBONE is no CONNECT to an address and a port: names of Services are for waypoints and gateways",
)
HBONE_ELSEWHERE = Reason(
    "hbone_elsewhere",
    400,
    "NR",
    "hbone.destination_mismatch",
    "a peer asked a pod by HBONE for another address than the pod's, or for a port of the agent's own: has an "
    "address been given to another pod, or is a waypoint expected there?",
    denies=True,
)
HBONE_REFUSED = Reason(
    "hbone_refused",
    503,
    "UF",
    "upstream_reset_before_response_started{connection_failure}",
    "the proxy of the server's ambient mesh did not carry the connection: 401 is its policy's answer, 503 an "
    "application that is not there; its log tells more",
)
UNPARSED_HTTP = Reason(
    "unparsed_http",
    403,
    "NR",
    "filter_chain_not_found",
    "this is not HTTP, and here only what is parsed may pass, as a policy of the workload decides by the request: "
    "declare the port's protocol (its Service's port name or appProtocol: tcp)",
    denies=True,
)
OVER_LIMIT = Reason(
    "connections_per_pod",
    503,
    "UO",
    "overflow",
    "the pod holds proxy.limits.connectionsPerPod connections",
    denies=True,
)
JWT_REFUSED = Reason(
    "jwt_refused",
    401,
    "-",
    "jwt_authn_access_denied",
    "the token is not valid for a RequestAuthentication of the workload",
    denies=True,
)
POLICY_DENIED = Reason(
    "policy_denied",
    403,
    "-",
    "rbac_access_denied_matched_policy[none]",
    "no ALLOW policy of the workload matches: see nodeagent explain",
    b"RBAC: access denied",
    denies=True,
)
POLICY_REFUSED = Reason(
    "policy_refused",
    403,
    "-",
    "policy_refused[none]",
    "see nodeagent get policies for what is wrong with the document, and correct it",
    b"RBAC: access denied",
    denies=True,
)
BODY_TOO_LARGE = Reason(
    "body_too_large",
    413,
    "-",
    "request_payload_too_large",
    "the body exceeds maxRequestBytes of the external authorizer: see extensionProviders",
    b"Payload Too Large",
    denies=True,
)
EXTERNAL_DENIED = Reason(
    "external_denied", 403, "UAEX", "ext_authz_denied", "the external authorizer refused the request", denies=True
)
EXTERNAL_ERROR = Reason(
    "external_error",
    403,
    "UAEX",
    "ext_authz_error",
    "the external authorizer did not answer: is its Service up? See extensionProviders",
)
EXTERNAL_MISSING = Reason(
    "external_missing",
    403,
    "UAEX",
    "ext_authz_error",
    "no external authorizer has the name that the policy says: see nodeagent get policies and extensionProviders",
)
RATE_LIMITED = Reason(
    "rate_limited",
    429,
    "RL",
    "local_rate_limited",
    "a RateLimit of the workload is used up",
    b"local_rate_limited",
    denies=True,
)
CERTIFICATE_ENDED = Reason(
    "certificate_ended",
    0,
    "UC",
    "certificate_expired",
    "the certificate that the connection was authorised by has ended: the client connects anew",
    denies=True,
)
NO_ORIGINAL = Reason(
    "no_original_destination",
    0,
    "NR",
    "original_destination_unknown",
    "the connection did not come through the connect hook",
)
