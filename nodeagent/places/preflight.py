"""What ``nodeagent check`` tries of the container runtime: that its socket speaks CRI v1, and that what
it says of a sandbox leads to a place that can be used from here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from nodeagent.places.runtime import CriRuntime, find_socket
from nodeagent.places.sandbox import SandboxError, SandboxReader


def try_runtime(configured: Path | None, root: Path) -> str:
    """Ask the runtime whose socket *configured* or the node has; return what it is and how many
    sandboxes can be used, for pods below the cgroup *root*.

    Raises ConfigError, RuntimeUnavailable, SandboxError.
    """
    return asyncio.run(_asked(CriRuntime(find_socket(configured)), SandboxReader(root)))


async def _asked(runtime: CriRuntime, reader: SandboxReader) -> str:
    try:
        version = await runtime.version()
        used = 0
        for listed in await runtime.sandboxes():
            report = await runtime.report(listed.id)
            if report is None or not report.ready or report.host_network:
                continue
            try:
                reader.read(listed, report)
            except SandboxError as error:
                raise SandboxError(f"the sandbox of pod {listed.namespace!r}/{listed.name!r}: {error}") from None
            used += 1
    finally:
        runtime.close()
    return f"{version}, {used} sandboxes with a network of their own"
