"""The little of Kubernetes' API that the webhook needs, on aiohttp: kubernetes-asyncio would double
its memory (79 MB beside 39).
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from nodeagent.errors import ConfigError, ControlError, ResourceError
from nodeagent.identity.tls import load_chain
from nodeagent.resources import yaml_text

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
MAX_ANSWER: Final = 8 << 20
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"


class ApiError(ControlError):
    """The API server could not be reached, or answered with an error; *status* 0: it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and what proves to it who asks: a client certificate in *context*, or a token."""

    server: str
    context: ssl.SSLContext
    token_file: Path | None = None
    """Read anew for each request: the kubelet renews it."""
    token: str = ""

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that prove who asks; none with a client certificate. Raises
        ApiError when the token cannot be read, or could not stand in a header.
        """
        try:
            token = self.token_file.read_text().strip() if self.token_file else self.token
        except (OSError, UnicodeDecodeError) as error:
            raise ApiError(f"{self.token_file}: {error}") from None
        if not token.isprintable():
            raise ApiError(
                f"{self.token_file or 'the kubeconfig'}: the token holds a character that no HTTP header may have"
            )
        return {"Authorization": f"Bearer {token}"} if token else {}


KubeObject = dict[str, Any]
"""What the API server answers, or a part of a kubeconfig: its fields are looked at where they are
read, and what is not as it should be is one error of this module or of the reader.
"""


class KubeApi:
    """Asks the API server that *access* leads to; each request is a connection of its own."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def get(self, path: str) -> KubeObject:
        """Return the object at *path* of the API server. Raises ApiError with the status that it answered."""
        return await self._ask("GET", path, None, {})

    async def patch(self, path: str, patch: Mapping[str, object]) -> KubeObject:
        """Apply a strategic merge *patch* and return the object. Raises ApiError; status 409:
        somebody else has changed it meanwhile.
        """
        return await self._ask("PATCH", path, orjson.dumps(patch), {"Content-Type": STRATEGIC_MERGE})

    async def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> KubeObject:
        url = f"{self._access.server}{path}"
        headers = {**headers, **self._access.headers()}
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=TIMEOUT, connector=aiohttp.TCPConnector(ssl=self._access.context)
                ) as session,
                session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                content = bytearray()
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) > MAX_ANSWER:
                        raise ApiError(f"{method} {url}: the answer has more than {MAX_ANSWER} bytes")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"{method} {url}: {str(error) or type(error).__name__}") from None
        return _answer(method, url, response.status, bytes(content))


def _answer(method: str, url: str, status: int, content: bytes) -> KubeObject:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(f"{method} {url}: status {status}, and no JSON object", status)
    if status >= 300:
        raise ApiError(f"{method} {url}: status {status}: {str(document.get('message'))[:300]}", status)
    return document


def in_cluster(account: Path = ACCOUNT) -> Access:
    """Return the access of the pod's service account. Raises ConfigError outside a cluster."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError(
            "registration.kubeconfig: absent, and KUBERNETES_SERVICE_HOST is not set: this is no pod of a cluster"
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{account / 'ca.crt'}: {error}") from None
    return Access(server, context, account / "token")


def from_kubeconfig(path: Path) -> Access:
    """Return the access that the current context of a kubeconfig gives. Raises ConfigError.

    A user may have a token, a token file or a client certificate; programs that get a token (exec)
    are not run.
    """
    try:
        document: Any = yaml_text.one(path.read_text())  # others' JSON: a wrong type is told below
        context = _named(document, "contexts", "context", document["current-context"])
        cluster = _named(document, "clusters", "cluster", context["cluster"])
        user = _named(document, "users", "user", context["user"])
        if unknown := {"exec", "auth-provider", "username", "password"} & set(user):
            raise ConfigError(
                f"{path}: the user's {', '.join(sorted(unknown))}: not supported; a token, tokenFile or client "
                "certificate is expected"
            )
        token_file = path.parent / user["tokenFile"] if "tokenFile" in user else None
        return Access(
            str(cluster["server"]).rstrip("/"),
            _context(path.parent, cluster, user),
            token_file,
            str(user.get("token", "")),
        )
    except KeyError as error:
        raise ConfigError(f"{path}: {error.args[0]} is missing") from None
    except (
        OSError,
        UnicodeDecodeError,
        ResourceError,
        ssl.SSLError,
        binascii.Error,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{path}: not a usable kubeconfig: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from None


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
