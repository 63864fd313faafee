"""Finding running agents and asking them: which ones a command line means, and the client of their
admin API, over its unix socket or TCP.
"""

from __future__ import annotations

import functools
import http.client
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from nodeagent.cli.output import Row
from nodeagent.errors import ControlError
from nodeagent.istio import ADMIN_PORT

SOCKET: Final = Path("/run/nodeagent/admin.sock")
LAB_SOCKETS: Final = "lab/*/*/run/admin.sock"
"""Below the folder of SOCKET: lab's name, node's name."""
LOGS: Final = "/logs"
"""How the paths begin that are there only where logs are read."""
_TIMEOUT_SECONDS: Final = 60.0
_CREDENTIALS: Final = struct.Struct("=3i")
"""struct ucred (unix(7)): pid, uid, gid."""
_NO_AGENT: Final = "the answer is not JSON: is this an agent's admin port?"
_ADMIN_HELP: Final = "The agent at http://HOST:PORT, or at the path of its admin.sock.  [env: NODEAGENT_ADMIN]"


@dataclass(frozen=True, slots=True)
class RunningAgent:
    """A running agent: how it is reached, and what its rows are labelled with."""

    name: str
    """In a lab ``LAB/NODE``, otherwise the machine's; its address where it was named by that."""
    address: str
    """``http://HOST:PORT``, or the path of a unix socket."""
    lab: str = ""
    node: str = ""

    def rows(self, path: str) -> list[Row]:
        """Return the list that GET *path* answers. Raises ControlError."""
        answer = self._ask("GET", path)
        if not isinstance(answer, list):
            raise ControlError(f"{self.address}: GET {path}: {_NO_AGENT}")
        return answer

    def get(self, path: str) -> Row:
        """Return the object that GET *path* answers. Raises ControlError."""
        return self._ask_one("GET", path)

    def post(self, path: str) -> Row:
        """Return the object that POST *path* answers. Raises ControlError."""
        return self._ask_one("POST", path)

    def words(self, path: str, *, own: bool = False) -> tuple[bool, str]:
        """Return whether GET *path* is answered by 200, and the text. *own*: only the daemon of this
        process's container may answer. Raises ControlError.
        """
        connection = _connection(self.address)
        try:
            connection.connect()
            if own and not _is_own(connection.sock):
                raise ControlError(f"{self.address}: the daemon that answers is another container's")
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status == http.client.OK, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{self.address}: {error}: does the agent run?") from None
        finally:
            connection.close()

    def _ask_one(self, method: str, path: str) -> Row:
        answer = self._ask(method, path)
        if not isinstance(answer, dict):
            raise ControlError(f"{self.address}: {method} {path}: {_NO_AGENT}")
        return answer

    def _ask(self, method: str, path: str) -> object:
        connection = _connection(self.address)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            if response.status == http.client.BAD_REQUEST:  # the question is wrong, not the way it took
                raise ControlError(f"{self.name}: {body.decode(errors='replace').strip()[:200]}")
            if response.status == http.client.NOT_FOUND and path.startswith(LOGS) and body.startswith(b"no such path"):
                raise ControlError(
                    f"{self.name}: no logs are read here: its agent.yaml has no section logs (docs/logs.md)"
                )
            if response.status != http.client.OK:
                raise ControlError(
                    f"{self.address}: {method} {path}: {response.status} {body.decode(errors='replace').strip()[:200]}"
                )
            found: object = json.loads(body)
            return found
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(
                f"{self.address}: {error.strerror if isinstance(error, OSError) and error.strerror else error}: "
                "does the agent run?"
            ) from None
        except ValueError:
            raise ControlError(f"{self.address}: {method} {path}: {_NO_AGENT}") from None
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the running agents a command line means."""

    admin: str | None = None
    lab: str | None = None
    node: str | None = None
    every: bool = False


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the options that say which agents are meant; it is called with them as
    ``agents``, a list of at least one Agent.
    """

    @click.option("--name", "lab", metavar="LAB", help="The agents of this lab.")
    @click.option("--node", metavar="NODE", help="The agent of this node.")
    @click.option(
        "--all",
        "every",
        is_flag=True,
        help="Every agent that runs on this machine. Without any of these: the only one.",
    )
    @click.option("--admin", envvar="NODEAGENT_ADMIN", metavar="ADDRESS", help=_ADMIN_HELP)
    @functools.wraps(command)
    def chosen(
        *values: object, admin: str | None, lab: str | None, node: str | None, every: bool, **others: object
    ) -> None:
        if admin and (lab or node or every):
            if click.get_current_context().get_parameter_source("admin") is not ParameterSource.ENVIRONMENT:
                raise click.UsageError(
                    "--admin names one agent; leave out --name, --node and --all", click.get_current_context()
                )
            admin = None  # what is said beats what was set once
        command(*values, agents=find(Choice(admin, lab, node, every)), **others)

    return chosen


def find(choice: Choice, base: Path = SOCKET.parent) -> list[RunningAgent]:
    """Return the agents that *choice* means, of those that listen on a socket below *base*.

    Raises ControlError when there is none, and click.UsageError when several run and nothing says
    that all of them, or a lab's, are meant.
    """
    if choice.admin:
        return [RunningAgent(choice.admin, choice.admin)]
    running = _running(base)
    if not running:
        where = f"{base / SOCKET.name} or {base / LAB_SOCKETS}"
        raise ControlError(
            f"no agent runs here: nothing listens on {where}; see nodeagent run and nodeagent lab up, or name one "
            "with --admin"
        )
    found = [agent for agent in running if choice.lab in (None, agent.lab) and choice.node in (None, agent.node)]
    if not found:
        wanted = " ".join(
            f"--{flag} {value}" for flag, value in (("name", choice.lab), ("node", choice.node)) if value is not None
        )
        raise ControlError(f"no agent is meant by {wanted}; running: {_names(running)}")
    if len(found) > 1 and not choice.every and choice.lab is None:
        ask = "which one is meant? Say --name LAB, --node NODE, --admin ADDRESS, or --all"
        raise click.UsageError(
            f"{len(found)} agents run here ({_names(found)}): {ask}", click.get_current_context(silent=True)
        )
    return found


def _running(base: Path) -> list[RunningAgent]:
    host = socket.gethostname()
    found = [RunningAgent(host, str(base / SOCKET.name), node=host)]
    for path in sorted(base.glob(LAB_SOCKETS)):
        lab, node = path.parts[-4:-2]
        found.append(RunningAgent(f"{lab}/{node}", str(path), lab, node))
    return [agent for agent in found if _listens(Path(agent.address))]


def _is_own(connection: socket.socket) -> bool:
    """Say whether the process that listens at the other end of a unix socket is of this process's
    cgroup, as whoever is started in a container (``exec``) and the container's own processes are.

    By SO_PEERCRED and cgroups(7). Of another pid namespace, no process is seen (pid 0).
    """
    if connection.family != socket.AF_UNIX:
        return False
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = int(_CREDENTIALS.unpack(credentials)[0])
    try:
        return Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
    except OSError:
        return False


def _names(agents: list[RunningAgent]) -> str:
    return ", ".join(agent.name for agent in agents)


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
        host = url.hostname
        port = url.port
    except ValueError:
        host = None
        port = None
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
