"""Finding running agents and asking them: the client of the admin API, over its unix socket or TCP."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from nodeagent.errors import ControlError
from nodeagent.istio import ADMIN_PORT

SOCKET: Final = Path("/run/nodeagent/admin.sock")
LAB_SOCKETS: Final = "lab/*/*/run/admin.sock"
"""Below the folder of SOCKET: lab's name, node's name."""
_TIMEOUT_SECONDS: Final = 60.0

admin_option = click.option(
    "--admin",
    envvar="NODEAGENT_ADMIN",
    metavar="URL|SOCKET",
    help="The agent to ask, as http://HOST:PORT or the path of its admin.sock.  [env: NODEAGENT_ADMIN; default: every agent found below /run/nodeagent]",
)


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent: how it is reached, and what its rows are labelled with."""

    node: str
    address: str
    """``http://HOST:PORT``, or the path of a unix socket."""

    def get(self, path: str) -> Any:
        """Return what GET *path* answers. Raises ControlError."""
        return self._ask("GET", path)

    def post(self, path: str) -> Any:
        """Return what POST *path* answers. Raises ControlError."""
        return self._ask("POST", path)

    def _ask(self, method: str, path: str) -> Any:
        connection = _connection(self.address)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise ControlError(f"{self.address}: {method} {path}: {response.status} {body.decode(errors='replace').strip()[:200]}")
            return json.loads(body)
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{self.address}: {error.strerror if isinstance(error, OSError) and error.strerror else error}: does the agent run?") from None
        except ValueError:
            raise ControlError(f"{self.address}: {method} {path}: the answer is not JSON: is this an agent's admin port?") from None
        finally:
            connection.close()


def find(admin: str | None, base: Path = SOCKET.parent) -> list[Agent]:
    """Return the agent named by *admin*, or every one that listens on a socket below *base*.

    Raises ControlError when there is none.
    """
    if admin:
        return [Agent(admin, admin)]
    found = [Agent(socket.gethostname(), str(base / SOCKET.name))] if _listens(base / SOCKET.name) else []
    for path in sorted(base.glob(LAB_SOCKETS)):
        if _listens(path):
            node, lab = path.parts[-3], path.parts[-4]
            found.append(Agent(f"{lab}/{node}", str(path)))
    if not found:
        where = f"{base / SOCKET.name} or {base / LAB_SOCKETS}"
        raise ControlError(f"no agent runs here: nothing listens on {where}; see nodeagent run and nodeagent lab up, or name one with --admin")
    return found


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except PermissionError:
            return True  # it is asked, and says so
        except OSError:
            return False
    return True


def _connection(address: str) -> http.client.HTTPConnection:
    if "://" not in address:
        return _UnixConnection(address)
    url = urlsplit(address)
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if url.scheme != "http" or not host:
        raise ControlError(f"--admin {address}: expected http://HOST:PORT or the path of a socket")
    return http.client.HTTPConnection(host, port or ADMIN_PORT, timeout=_TIMEOUT_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(self._path)
