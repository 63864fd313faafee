"""What a load generator does not do is told as a fault of the comparison, so that other modes go on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.compare import load
from nodeagent.compare.load import Client, CompareError, Sample


def client(stdout: str = "", *, stderr: str = "", status: int = 0, hangs: bool = False) -> Client:
    def execute(pod: str, argv: list[str], namespace: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if hangs:
            raise subprocess.TimeoutExpired(argv, options["timeout"])
        return subprocess.CompletedProcess(argv, status, stdout, stderr)

    lab: Any = SimpleNamespace(exec=execute, name="mine")
    return Client(lab, "plain")


WAYS: tuple[Callable[[Client], Sample], ...] = (
    lambda client: load.closed(client, "http://a/", 1, 1),
    lambda client: load.open_loop(client, "http://a/", 1, 1, 1),
    lambda client: load.stream(client, "a:1", 1),
)


@pytest.mark.parametrize("way", WAYS, ids=["closed", "open", "stream"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (client(hangs=True), "still running after 21 s"),
        (client(status=1, stderr="unable to connect"), "unable to connect"),
        (client("no JSON at all"), "no JSON at all"),
        (client("{broken"), "broken"),
        (client(), "it says nothing"),
    ],
    ids=["hangs", "fails", "text", "broken", "silent"],
)
def test_what_does_not_measure_is_named(way: Callable[[Client], Sample], given: Client, message: str) -> None:
    with pytest.raises(CompareError, match=f"in plain/client of lab mine: .*{message}"):
        way(given)
