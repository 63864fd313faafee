"""Processes stay small: the collector of garbage rests while much is read that stays, and nothing is imported
that is not used.
"""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from nodeagent.memory import uncollected


def test_the_collector_works_again_when_the_last_of_overlapping_uses_has_ended() -> None:
    first, second = uncollected(), uncollected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_the_collector_works_again_after_an_error() -> None:
    def fails() -> None:
        with uncollected():
            assert not gc.isenabled()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fails()
    assert gc.isenabled()


def test_what_is_kept_free_is_not_cleared_anew_each_time() -> None:
    """Input: 4 MB made and freed fifty times. Verdict: the kernel gives their pages once."""
    code = (
        "import resource, nodeagent.memory\n"
        "nodeagent.memory.keep_free(16 << 20)\n"
        "pieces = [b'x' * 100] * 10_000\n"
        "for _ in range(50):\n"
        "    made = [b''.join(pieces) for _ in range(4)]\n"
        "    del made\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "a page for each 4 KiB of all of them would be 50,000"


def test_the_daemon_holds_nothing_that_it_is_not_configured_for() -> None:
    """Input: the daemon's code, and a configuration without logs, read and told to a worker. Verdict: what
    reads logs, and what a cluster takes, was not imported; with logs, their settings are validated.
    """
    code = (
        "import sys, nodeagent.agent\n"
        "from nodeagent.config import AgentConfig\n"
        "given = {'node': 'a', 'source': '/s', 'redirect': {'cgroup': '/c'}, 'identity': {'caDirectory': '/c'}}\n"
        "AgentConfig.model_validate(AgentConfig.model_validate(given).model_dump(mode='json', by_alias=True))\n"
        "print([name for name in sys.modules if name.startswith(('nodeagent.logs', 'nodeagent.kube', 'msgspec'))])\n"
        "found = AgentConfig.model_validate({**given, 'logs': {'sinks': [{'name': 'a', 'stdout': {}}]}})\n"
        "print(found.logs.sinks[0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\na\n"


def test_a_labs_kubelet_starts_without_what_makes_a_lab() -> None:
    """Input: the program of a lab's node. Verdict: what makes labs and gives pods sidecars, a third of the
    time that it takes to start, was not imported; whoever asks the package for it gets it.
    """
    code = (
        "import sys, nodeagent.lab.kubelet, nodeagent.lab as lab\n"
        "print([name for name in ('nodeagent.lab.cluster', 'nodeagent.inject') if name in sys.modules])\n"
        "print(lab.Lab.__module__, lab.Agent.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nnodeagent.lab.cluster nodeagent.lab.agent\n"
