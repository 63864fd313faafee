"""Where the API server is and what proves to it who asks: as the service account of a pod, or by a
kubeconfig.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent.errors import ConfigError, ControlError, ResourceError, unread
from nodeagent.identity.tls import load_chain
from nodeagent.resources import yaml_text

API_SERVER: Final = "KUBERNETES_SERVICE_HOST"
"""The variable that tells every pod the address of the API server's Service."""
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KubeObject = dict[str, Any]
"""What the API server answers, or a part of a kubeconfig: its fields are looked at where they are
read, and what is not as it should be is one error of this package or of the reader.
"""


class ApiError(ControlError):
    """The API server could not be reached, or answered with an error; *status* 0: it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


_STEP: Final = "a whole kubeconfig is expected; --kubeconfig, or KUBECONFIG, names another"
_STEPS: Final = {
    "current-context": "`kubectl config use-context NAME` sets it; --kubeconfig, or KUBECONFIG, names another file"
}
"""By what a kubeconfig lacks."""
UNSUPPORTED: Final = frozenset(
    {"exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra"}
)
"""Of a kubeconfig's user: without these it would be somebody else who asks, perhaps with more rights."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and what proves to it who asks: a client certificate in *context*, or a token."""

    server: str
    context: ssl.SSLContext
    token_file: Path | None = None
    """Read anew for each request: the kubelet renews it."""
    token: str = ""
    roots_file: Path | None = None
    """Of the roots in *context*: a cluster that changes its authority changes this file."""
    server_name: str = ""
    """What the server's certificate is for, where that is not the host in ``server``."""
    named_by: str = ""
    """What says so: where to look when nobody answers at ``server``."""

    def renew(self) -> None:
        """Trust the roots that ``roots_file`` holds by now, beside the earlier ones."""
        try:
            if self.roots_file is not None:
                self.context.load_verify_locations(self.roots_file)
        except (OSError, ssl.SSLError):
            return  # what was trusted stays; the handshake says what is wrong

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that prove who asks; none with a client certificate. Raises
        ApiError when the token cannot be read, or could not stand in a header.
        """
        try:
            token = self.token_file.read_text().strip() if self.token_file else self.token
        except (OSError, UnicodeDecodeError) as error:
            raise ApiError(unread(str(self.token_file), error)) from None
        if not token.isprintable():
            raise ApiError(
                f"{self.token_file or 'the kubeconfig'}: the token holds a character that no HTTP header may have"
            )
        return {"Authorization": f"Bearer {token}"} if token else {}


def open_access(kubeconfig: Path | None) -> Access:
    """Return the access that *kubeconfig* gives; None: that of the service account of the pod that
    this runs in. Raises ConfigError.
    """
    return in_cluster() if kubeconfig is None else from_kubeconfig(kubeconfig)


def in_cluster(account: Path = ACCOUNT) -> Access:
    """Return the access of the pod's service account. Raises ConfigError outside a cluster."""
    host = os.environ.get(API_SERVER)
    port = os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError(
            f"kubeconfig: absent, and {API_SERVER} is not set: this is no pod of a cluster; name a kubeconfig"
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{account / 'ca.crt'}: {error}") from None
    named_by = f"{API_SERVER} of this pod"
    return Access(server, context, account / "token", roots_file=account / "ca.crt", named_by=named_by)


def from_kubeconfig(path: Path) -> Access:
    """Return the access that the current context of a kubeconfig gives. Raises ConfigError.

    A user may have a token, a token file or a client certificate; programs that get a token (exec)
    are not run.
    """
    try:
        document: Any = yaml_text.one(path.read_text())  # others' JSON: a wrong type is told below
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: not a usable kubeconfig: a mapping is expected at the top")
        context = _named(document, "contexts", "context", document["current-context"])
        cluster = _named(document, "clusters", "cluster", context["cluster"])
        user = _named(document, "users", "user", context["user"])
        if "proxy-url" in cluster:
            raise ConfigError(f"{path}: the cluster's proxy-url: not supported; it would be passed by")
        if unknown := UNSUPPORTED & set(user):
            raise ConfigError(
                f"{path}: the user's {', '.join(sorted(unknown))}: not supported; a token, tokenFile or client "
                "certificate is expected"
            )
        server = str(cluster["server"]).rstrip("/")
        if not server.startswith("https://"):
            raise ConfigError(f"{path}: server: {server!r:.80}: a URL that begins with https:// is expected")
        roots = path.parent / cluster["certificate-authority"] if "certificate-authority" in cluster else None
        return Access(
            server,
            _context(path.parent, cluster, user),
            path.parent / user["tokenFile"] if "tokenFile" in user else None,
            str(user.get("token", "")),
            roots,
            str(cluster.get("tls-server-name", "")),
            f"the kubeconfig {path}; --kubeconfig, or kubernetes.kubeconfig of agent.yaml, names another",
        )
    except KeyError as error:
        missing = str(error.args[0])
        raise ConfigError(f"{path}: {missing} is missing: {_STEPS.get(missing, _STEP)}") from None
    except (ResourceError, ssl.SSLError, binascii.Error, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a usable kubeconfig: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}: {_STEP}"
        ) from None
    except OSError as error:
        raise ConfigError(unread(error.filename or path, error, _STEP)) from None


def _named(document: KubeObject, kind: str, field: str, name: str) -> KubeObject:
    for item in document[kind]:
        if item["name"] == name:
            found: KubeObject = item[field]
            return found
    raise KeyError(f"{field} {name!r}")


def _context(folder: Path, cluster: KubeObject, user: KubeObject) -> ssl.SSLContext:
    roots = _content(folder, cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    chain = _content(folder, user, "client-certificate")
    key = _content(folder, user, "client-key")
    if chain and key:
        load_chain(context, chain, key)
    return context


def _content(folder: Path, holder: KubeObject, name: str) -> bytes | None:
    """Return the content of a file that a kubeconfig names or, in base64, holds."""
    if f"{name}-data" in holder:
        return base64.b64decode(holder[f"{name}-data"], validate=True)
    return (folder / holder[name]).read_bytes() if name in holder else None
