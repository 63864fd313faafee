"""What ``nodeagent check`` tries of the container runtime: that its socket speaks CRI v1, that what it
says of a sandbox leads to a place that can be used from here, and that it asks over NRI before it
makes a container.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from nodeagent.errors import NodeagentError
from nodeagent.places.nri import Introduced, introduced, why_no_plugin
from nodeagent.places.runtime import CriRuntime, find_socket
from nodeagent.places.sandbox import SandboxError, SandboxReader
from nodeagent.places.ttrpc import TtrpcError

ANSWER_SECONDS: Final = 10.0
"""For a runtime to take a plugin: it takes one after the other."""
LEAST_PATIENCE: Final = 2.0
"""Seconds that runtimes wait for an answer if they are not told otherwise."""
_release: Final = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])").match


class NriUnavailable(NodeagentError):
    """The runtime takes no plugin; names the socket, the cause and the next step."""


def runtime_version(configured: Path | None) -> str:
    """Return name and version of the runtime, as :func:`try_runtime` finds it; empty where it does not answer."""
    try:
        return asyncio.run(_version(CriRuntime(find_socket(configured))))
    except NodeagentError:
        return ""


async def _version(runtime: CriRuntime) -> str:
    try:
        return await runtime.version()
    finally:
        runtime.close()


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


def try_nri(socket: Path, runtime: str) -> str:
    """Have the runtime at NRI's *socket* take a plugin, which leaves again before it is asked anything; return what the
    runtime is and for how long it waits. *runtime*: name and version, as CRI says them; empty: not known.

    Raises NriUnavailable.
    """
    try:
        said = asyncio.run(_introduced(socket))
    except (OSError, TtrpcError) as error:
        raise NriUnavailable(f"kubernetes.nri: {socket}: {why_no_plugin(error)}. {_next_step(runtime)}") from None
    waits = f"waits {said.seconds:g} s for an answer"
    if said.seconds < LEAST_PATIENCE:
        waits += f": less than {LEAST_PATIENCE:g} s (plugin_request_timeout), within which a busy node may not answer"
    return f"{said.runtime} asks before it makes a container, and {waits}"


async def _introduced(socket: Path) -> Introduced:
    async with asyncio.timeout(ANSWER_SECONDS):
        return await introduced(socket, "nodeagent-check")


def _next_step(runtime: str) -> str:
    """Return what to do so that *runtime* asks."""
    name, version = runtime.replace("'", "").partition(" ")[::2]
    release = _release(version)
    at_least = (int(release[1]), int(release[2])) if release is not None else None
    mount = "if it is on, mount /run/nri of the node into the agent's pod (daemonset/base does)"
    if name == "containerd" and at_least is not None and at_least < (1, 7):
        return f"containerd {version} has no NRI: containerd 2 has it switched on"
    if name == "containerd":
        default = "off" if at_least is not None and at_least < (2, 0) else "on"
        return (
            f"containerd {version} has it {default} by default: in its config.toml, "
            f'[plugins."io.containerd.nri.v1.nri"] wants disable = false; restart containerd; {mount}'
        )
    if name == "cri-o":
        return f"CRI-O from 1.26 on has it: in /etc/crio/crio.conf.d, [crio.nri] wants enable_nri = true; {mount}"
    return f"containerd 2, 1.7 and CRI-O from 1.26 on have NRI, by their configuration; {mount}"
