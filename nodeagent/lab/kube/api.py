"""Calls to a cluster's API server, from outside of its network namespace."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nodeagent.errors import LabError
from nodeagent.lab import linux
from nodeagent.lab.kube.layout import API
from nodeagent.lab.layout import Draft

TIMEOUT_SECONDS: Final = 30.0


class _Connection(http.client.HTTPSConnection):
    """A connection that belongs to another network namespace."""

    def __init__(self, netns: Path, context: ssl.SSLContext) -> None:
        server = urlsplit(API)
        super().__init__(server.hostname or "", server.port, timeout=TIMEOUT_SECONDS, context=context)
        self._netns = netns
        self._tls = context

    def connect(self) -> None:
        with linux.network_namespace(self._netns):
            plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


class KubeApi:
    """The API server as the owner of a token sees it."""

    def __init__(self, netns: Path, ca: Path, token: str) -> None:
        """*netns*: the control plane's; *ca*: the cluster's certificate authority."""
        self._netns = netns
        self._ca = ca
        self._token = token

    def call(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> tuple[int, Draft]:
        """Return status and object of a request; raises OSError while nobody answers."""
        connection = _Connection(self._netns, ssl.create_default_context(cafile=str(self._ca)))
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        return answer.status, _object(text)

    def get(self, path: str) -> Draft:
        """Return the object at *path*; empty: it is not there. Raises LabError, and OSError."""
        status, found = self.call("GET", path)
        if status == 404:
            return {}
        return self._good("GET", path, status, found)

    def post(self, path: str, body: Mapping[str, object]) -> Draft:
        """Make an object; raises LabError when the API server refuses it, and OSError."""
        return self._good("POST", path, *self.call("POST", path, body))

    def ready(self) -> bool:
        """Say whether the API server says that it is ready."""
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def _good(self, method: str, path: str, status: int, answer: Draft) -> Draft:
        if status >= 300:
            raise LabError(f"{method} {path}: {status}: {answer.get('message', answer)}")
        return answer


def _object(text: bytes) -> Draft:
    try:
        found = json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace")}
    return found if isinstance(found, dict) else {"message": found}
