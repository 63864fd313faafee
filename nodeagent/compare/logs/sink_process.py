"""The counting sink as who measures has it: a process, which is asked over HTTP what came."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nodeagent.compare.load import CompareError
from nodeagent.lab.linux import network_namespace
from nodeagent.lab.processes import inside


class SinkProcess:
    """The counting sink, in a process of its own on *core*; in *netns*, None: in the caller's. *port* 0: a free one.
    *leftover*: it has only what no other process wants of its core.
    """

    def __init__(self, core: int, *, netns: Path | None = None, port: int = 0, leftover: bool = False) -> None:
        argv = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "nodeagent.compare.logs.sink", str(port)]
        argv += ["leftover"] if leftover else []
        self._netns = netns
        if netns is not None:
            argv = inside(netns, argv)
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.strip().isdigit():
            self.close()
            raise CompareError("the sink that counts lines did not start")
        self.port = int(said)

    def counted(self) -> dict[str, Any]:
        """Return what came, as :class:`nodeagent.compare.logs.sink.LinesCounted` names it."""
        return self._ask("GET")

    def reset(self) -> None:
        """Count anew."""
        self._ask("PUT")

    def refuse(self) -> None:
        """Answer 429, until it is reset."""
        self._ask("PUT", "/busy")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, method: str, target: str = "/counted") -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            with network_namespace(self._netns) if self._netns is not None else nullcontext():
                connection.connect()
            connection.request(method, target)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return told
