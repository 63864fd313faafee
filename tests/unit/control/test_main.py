"""How control begins and ends."""

from __future__ import annotations

import asyncio

import pytest

from nodeagent.channel import pair
from nodeagent.config import AgentConfig
from nodeagent.control.main import run
from nodeagent.messages import Begin
from nodeagent.pulse import Pulses
from nodeagent.wire import MessageError, encode

CONFIG = AgentConfig.model_validate(
    {"node": "n1", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/"}}
)


def test_a_control_that_is_told_what_no_supervisor_tells_ends_for_its_successor() -> None:
    """Input: a message of a later version, before it may begin. Verdict: it fails by name and
    begins nothing: it cannot know what was kept for it.
    """

    async def scene() -> None:
        ours, theirs = pair()
        ours.send(b'{"op": "Kept", "names": []}')
        ours.send(encode(Begin())[0])
        async with asyncio.timeout(10):
            with pytest.raises(MessageError, match="Kept: files is missing"):
                await run(CONFIG, theirs, Pulses().claim())
        ours.close()

    asyncio.run(scene())
