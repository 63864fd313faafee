"""``python -m nodeagent.redirect.loader``: compiles, loads, pins and attaches the programs, and exits.

Its standard input is a line of settings (:class:`LoadRequest`), and another line, GO, when the
programs that it then has in the kernel shall be attached: until then another daemon may run.

The only importer of bcc, which maps 110 MB of LLVM into its process; not even that where the
programs were compiled ahead (precompiled.py). Safe to run again at any time:
pinned maps stay as they are, and running programs are replaced link by link, in one step each,
while traffic flows.

Maps that change their shape (a size in agent.yaml, a struct of another version) are made anew
beside the pinned ones, and everything is compiled, loaded and filled before the first link is
touched. What fails until the last is swapped takes all back: what was in force stays in force, and
pins change at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from nodeagent.config import Redirect
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.redirect import bypass, hooks, http_metrics, layout, maps, netns, pins, precompiled, rights, syscall

SOURCES: Final = ("maps.h", "http.c", "bypass.c", "connect.c", "name.c", "sockops.c", "node.c", "release.c", "lookup.c")
"""Joined into one text: BCC rewrites map accesses only in the main file, not in what it includes."""


class LoadRequest(BaseModel):
    """What control asks of the loader, as JSON on standard input."""

    redirect: Redirect
    agent_cgroup: Path | None = None
    outbound_port: int
    inbound_port: int
    joining: bypass.Joining = bypass.Joining()


_ZERO: Final = bytes(4)
_CLOSED: Final = (
    "are refused until they are enrolled again: what protects them was written by a version that this one cannot read"
)
_OWN: Final = "sockops-own"
"""The link by which sockops runs for the daemon's own cgroup, where that is not below the captured one."""


def source_directory() -> Path:
    """Return the folder of the C files: beside the package in a checkout, inside it when installed.
    Raises KernelError.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "nodeagent.h").is_file():
            return candidate
    raise KernelError(f"the folder bpf/ is neither in {package} nor beside it: install the package again")


def compile_programs(pin_directory: Path, joining: bypass.Joining) -> Any:
    """Compile all programs against the maps pinned in *pin_directory*; return bcc's BPF object. Raises KernelError."""
    source = source_directory()
    os.environ["BCC_KERNEL_SOURCE"] = str(source / "include")
    try:
        from bcc import BPF
    except ImportError as error:
        raise KernelError(
            f"bcc cannot be imported: {error}; install python3-bpfcc and use Debian's interpreter "
            f"(--system-site-packages), or a wheel that `make wheel` made, with {precompiled.FILE} in it"
        ) from None
    text = "".join(f'#line 1 "{name}"\n{(source / name).read_text()}\n' for name in SOURCES)
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    flags = [
        f"-I{source}",
        "-I/usr/include",
        f"-I/usr/include/{triplet}",
        "-Wno-everything",
        f'-DPINS="{pin_directory}"',
    ]
    flags += [f"-DUNREAD_OFFSET={joining.unread}", f"-DWRITTEN_OFFSET={joining.written}"]
    try:
        return BPF(text=text, cflags=flags)
    except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
        # bcc makes what the programs share while it compiles, and does not say why it failed
        step = "is linux-libc-dev installed?" if "SYS_ADMIN" in rights.held() else "is CAP_SYS_ADMIN given?"
        raise KernelError(f"the BPF programs do not compile: {error}; {step} The compiler's words are above") from None


ATTACHED: Final = b"attached\n"
"""What the loader says when pods can be captured; only what counts HTTP is loaded after that, as it
takes the verifier longest.
"""


LOADED: Final = b"loaded\n"
"""What the loader says when everything is compiled and in the kernel: it waits for GO."""
GO: Final = b"go\n"


def _load(program: precompiled.Programs, pinned: pins.Pins, wanted: Iterable[hooks.Hook]) -> dict[str, int]:
    """Load *wanted* programs into the kernel and pin each in place of its predecessor; return descriptors by name."""
    loaded = {}
    for hook in wanted:
        try:
            fd = program.load_func(hook.name, hook.program_type, attach_type=hook.attach_type).fd
        except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
            right = "is CAP_SYS_ADMIN given? " if os.strerror(errno.EPERM) in str(error) else ""
            step = f"{right}`nodeagent check` says what is missing"
            raise KernelError(f"the kernel does not take the program {hook.name}: {error}; {step}") from None
        fresh = pinned.programs / f"new-{hook.name}"
        fresh.unlink(missing_ok=True)
        syscall.pin(fd, fresh)
        fresh.rename(pinned.programs / hook.name)
        loaded[hook.name] = fd
    return loaded


def own_cgroup(captured: Path) -> Path | None:
    """Return this process's cgroup if it is below *captured*, else None.

    Raises KernelError when it is *captured* itself, for then nothing would tell the daemon's own
    connections from the pods'.
    """
    found = _search(captured)
    if found == captured:
        raise KernelError(f"{captured}: the daemon runs in the captured cgroup itself; give it a cgroup of its own")
    return found


def _search(top: Path) -> Path | None:
    """Return this process's cgroup if it is *top* or below it: by pid, for within a cgroup
    namespace /proc/self/cgroup does not say where it is.
    """
    me = str(os.getpid())
    for directory, _, _ in os.walk(top):
        with contextlib.suppress(OSError):  # a cgroup may vanish while we look
            if me in (Path(directory) / "cgroup.procs").read_text().split():
                return Path(directory)
    return None


def root_of(cgroup: Path) -> Path:
    """Return the root of the hierarchy that *cgroup* is in, as far as this process sees it."""
    cgroup = cgroup.resolve()
    return next(one for one in (cgroup, *cgroup.parents) if one.is_mount())


def cgroup_beside(captured: Path) -> Path | None:
    """Return this process's cgroup, which is not below *captured*.

    None if it is not seen, or holds *captured*: a program there would run for every pod once more.
    """
    captured = captured.resolve()
    own = _search(root_of(captured))
    return None if own is None or captured.is_relative_to(own) else own


def _settings(request: LoadRequest, cgroup: Path | None, before: layout.SettingsValue) -> bytes:
    """Return the settings that succeed *before*. The cgroups of earlier daemons stay known, the last
    ones: such a daemon may still be ending its connections, and what it opens for them is its own.
    """
    redirect = request.redirect
    try:
        agent = cgroup.stat().st_ino if cgroup else 0
    except OSError as error:
        raise KernelError(f"{cgroup}: the daemon's cgroup cannot be read: {error.strerror}") from None
    earlier = [one for one in (before.agent_cgroup, *before.earlier_cgroups) if one not in (0, agent)]
    earlier = [*earlier, *[0] * layout.EARLIER_CGROUPS][: layout.EARLIER_CGROUPS]
    values = layout.SettingsValue(
        heartbeat_timeout_ns=int(redirect.heartbeat_timeout_seconds * 1e9),
        agent_cgroup=agent,
        host_netns=netns.own_cookie(),
        deny_unknown=redirect.unknown_pods == "deny",
        outbound_port=request.outbound_port,
        inbound_port=request.inbound_port,
        kernel_path_timeout_ns=int(redirect.kernel_path_timeout_seconds * 1e9),
        earlier_cgroups=(ctypes.c_uint64 * layout.EARLIER_CGROUPS)(*earlier),
        owner=before.owner + 1,
    )
    return bytes(values)


def open_cgroup(path: Path) -> hooks.AttachPoint:
    """Open the captured cgroup. Raises KernelError."""
    try:
        if pins.filesystem(path.resolve(strict=True)) != "cgroup2":
            raise KernelError(
                f"{path}: is not in a cgroup2 hierarchy, where BPF attaches: see redirect.cgroup and `grep "
                "cgroup2 /proc/mounts`"
            )
        return hooks.AttachPoint.open(path, f"the cgroup {path}")
    except OSError as error:
        raise KernelError(
            f"{path}: the captured cgroup cannot be opened: {error.strerror}; see redirect.cgroup"
        ) from None


@contextlib.contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def run(request: LoadRequest, go: Callable[[], None] = lambda: None) -> None:
    """Bring the kernel to what *request* asks for; nothing of it is in force before *go* returns.

    Raises KernelError, and what *go* raises; what was attached before then stays attached.
    """
    redirect = request.redirect
    cgroup = open_cgroup(redirect.cgroup)
    pinned = pins.Pins(redirect.pin_directory)
    pinned.make()
    with _exclusive(pinned.maps):  # the folder itself is the daemon's to lock
        below = request.agent_cgroup or own_cgroup(redirect.cgroup)
        beside = cgroup_beside(redirect.cgroup) if below is None else None
        with pinned.successor() as successor:
            succession = maps.succeed(pinned.maps, successor.maps, redirect.maps)
            programs = precompiled.find(source_directory(), successor.maps, request.joining)
            if programs is None:
                programs = compile_programs(successor.maps, request.joining)
            loaded = _load(programs, successor, (hook for hook in hooks.HOOKS if hook is not hooks.HTTP_EGRESS))
            go()
            succession.carry()
            if closed := succession.close_pods(pinned.cookies()):
                print(f"{closed} pods {_CLOSED}", file=sys.stderr)
            before = layout.settings(succession.maps["settings"].get(_ZERO))
            settings = _settings(request, below, before)
            with contextlib.ExitStack() as undo:
                swap = _Swap(pinned, loaded, undo)
                swap.pods()
                swap.messages(succession.maps["bypass_sockets"])
                if not request.joining.refusal:
                    swap.cgroup(hooks.SETSOCKOPT, cgroup)
                for hook in hooks.CGROUP_HOOKS:
                    swap.cgroup(hook, cgroup)
                swap.cgroup(hooks.NODE_SOCKOPS, open_cgroup(root_of(redirect.cgroup)))
                if beside is not None:  # the daemon's own sockets are ends of proxied connections
                    swap.cgroup(hooks.SOCKOPS, open_cgroup(beside), name=_OWN)
                # programs of both versions read them: not before the last step
                succession.maps["settings"].put(_ZERO, settings)
                undo.pop_all()
            swap.leave()
            pinned.take(successor)
        for name, wanted in ((_OWN, beside is not None), (hooks.SETSOCKOPT.name, not request.joining.refusal)):
            if not wanted:
                hooks.remove(pinned.links / name)
        sys.stdout.buffer.write(ATTACHED)
        sys.stdout.flush()
        http_metrics.install(succession.maps, _load(programs, pinned, (hooks.HTTP_EGRESS,)), pinned.links, cgroup)


class _Swap:
    """Puts the programs *loaded* in the place of those that are pinned, step by step; *undo* takes every step back."""

    def __init__(self, pinned: pins.Pins, loaded: Mapping[str, int], undo: contextlib.ExitStack) -> None:
        self._links = pinned.links
        self._loaded = loaded
        self._undo = undo.callback
        self._before = {path.name: syscall.get(path) for path in pinned.programs.iterdir()}
        self._left: list[int] = []

    def pods(self) -> None:
        """Give each pod's link the new program; remove the links whose network namespace is gone."""
        name = hooks.LOOKUP.name
        for path in self._links.glob("lookup-*"):
            link = syscall.get(path)
            self._undo(os.close, link)
            try:
                syscall.link_update(link, self._loaded[name])
            except OSError as error:
                if error.errno != errno.ENOLINK:
                    raise KernelError(f"the link {path.name} does not take its new program: {error.strerror}") from None
                path.unlink()
            else:
                self._undo(syscall.link_update, link, self._before[name])

    def messages(self, sockets: maps.Map) -> None:
        """Give the sockhash its program; sockets that are in it keep theirs."""
        name = hooks.BYPASS_MESSAGE.name
        if name in self._before:
            self._undo(bypass.attach, sockets, self._before[name])
        bypass.attach(sockets, self._loaded[name])

    def cgroup(self, hook: hooks.Hook, target: hooks.AttachPoint, name: str = "") -> None:
        """Attach *hook* to *target*, pinned as *name*; where another cgroup was captured, it stays there
        until :meth:`leave`: in between nothing would be.
        """
        path = self._links / (name or hook.name)
        before = self._before.get(hook.name)
        there = path.exists()
        elsewhere = hooks.elsewhere(path, hook, target)
        os.close(hooks.ensure(path, hook, target, self._loaded[hook.name]))
        if elsewhere is not None:
            self._left.append(elsewhere)
            self._undo(syscall.pin, elsewhere, path)
            self._undo(hooks.remove, path)
        elif there and before is not None:
            self._undo(lambda: os.close(hooks.ensure(path, hook, target, before)))
        else:
            self._undo(hooks.remove, path)

    def leave(self) -> None:
        """Detach what is at cgroups that are not captured any more: a daemon that drains has the links open."""
        for link in self._left:
            syscall.link_detach(link)
            os.close(link)


def _wait_to_go() -> None:
    """Raises KernelError when who asked for the programs is gone."""
    sys.stdout.buffer.write(LOADED)
    sys.stdout.flush()
    if sys.stdin.buffer.readline() != GO:
        raise KernelError("the programs are not needed any more: who asked for them is gone")


def main() -> int:
    try:
        run(LoadRequest.model_validate_json(sys.stdin.buffer.readline()), _wait_to_go)
    except (NodeagentError, OSError) as error:
        print(f"loader: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
