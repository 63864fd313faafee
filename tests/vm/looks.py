"""What is asked of a machine, or of a pod on it, again and again until it is so."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests import waiting
from tests.vm.machines import Answer, Machine
from tests.vm.telling import Failed

SECONDS = 600.0
"""For a state to come on emulated processors, a reboot's end too, on a machine that does much else."""
PAUSE = 2.0
"""Between two looks: each takes an emulated processor seconds, which what is waited for has not."""
CURL = "curl --silent --show-error --max-time 60 --globoff"


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until *condition* holds. Raises AssertionError."""
    waiting.eventually(condition, what, SECONDS, PAUSE)


def get(node: Machine, url: str, pod: str = "client") -> Answer:
    """Have a pod ask for *url*; the answer ends with a line that is the status code."""
    return node.pod(pod, f"{CURL} --write-out '%{{http_code}}' {url}")


def asked(node: Machine, url: str, pod: str = "client") -> str:
    """As :func:`get`; return body and status code. Raises Failed when nothing answers."""
    answer = get(node, url, pod)
    if answer.status:
        raise Failed(f"{pod} asked {url}: {answer.errors}")
    return answer.output


def state_of(node: Machine) -> dict[str, str]:
    return {str(row["pod"]): str(row["state"]) for row in node.rows("get pods")}


def all_enrolled(node: Machine) -> bool:
    """Say whether the agent runs and has captured all pods of its node."""
    answer = node.ask("nodeagent get pods -o json")
    states = [row["state"] for row in json.loads(answer.output)] if not answer.status else []
    return bool(states) and set(states) == {"enrolled"}
