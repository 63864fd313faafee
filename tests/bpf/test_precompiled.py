"""Programs compiled ahead are what BCC compiles on the node, and are loaded where there is no BCC."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nodeagent.config import MapSizes
from nodeagent.redirect import hooks, loader, maps, pins, precompile, precompiled, syscall
from nodeagent.redirect.bypass import Joining
from nodeagent.redirect.precompiled import CompiledPrograms
from tests.bpf.conftest import Node

pytestmark = pytest.mark.filterwarnings("ignore:not a bytes object:DeprecationWarning")
JOINING = Joining(unread=272, written=1704)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, with the file of `make wheel` beside them."""
    source = tmp_path_factory.mktemp("ahead") / "bpf"
    shutil.copytree(loader.source_directory(), source)
    precompile.write(source / precompiled.FILE)
    return source


@contextmanager
def pinned_maps() -> Iterator[Path]:
    folder = pins.Pins(pins.BPFFS / f"nodeagent-test-ahead-{os.getpid()}")
    folder.make()
    try:
        maps.succeed(folder.programs, folder.maps, MapSizes.model_validate({}))
        yield folder.maps
    finally:
        pins.cleanup(folder.directory)


@pytest.mark.parametrize("joining", [JOINING, Joining(refusal="not here")], ids=["joined", "apart"])
def test_they_are_what_bcc_compiles_on_the_node(ahead: Path, joining: Joining) -> None:
    compiled = CompiledPrograms.model_validate_json((ahead / precompiled.FILE).read_text())
    texts = compiled.apart if joining.refusal else compiled.joined
    with pinned_maps() as folder:
        programs = loader.compile_programs(folder, joining)
        from bcc import lib

        descriptors = {path.name: lib.bpf_table_fd(programs.module, path.name.encode()) for path in folder.iterdir()}
        differ = [
            hook.name
            for hook in hooks.HOOKS
            if programs.dump_func(hook.name.encode()) != precompiled.filled(texts[hook.name], descriptors, joining)
        ]
    assert differ == []


def _load_without_a_compiler(_pipe: Connection, request: loader.LoadRequest, source: Path) -> None:
    sys.modules["bcc"] = None  # type: ignore[assignment]  # whoever imports it now fails
    loader.source_directory = lambda: source
    loader.run(request)


def _programs(node: Node) -> dict[str, int]:
    """Return the kernel's ids of the programs that are pinned."""
    found = {}
    for path in (node.pin_directory / "progs").iterdir():
        fd = syscall.get(path)
        found[path.name] = hooks.program_id(fd)
        os.close(fd)
    return found


@pytest.mark.parametrize("joining", [JOINING, Joining(refusal="not here")], ids=["joined", "apart"])
def test_a_node_without_bcc_takes_them(ahead: Path, make_node: Callable[..., Node], joining: Joining) -> None:
    node = make_node()
    before = _programs(node)
    request = loader.LoadRequest(
        redirect=node.redirect(),
        agent_cgroup=node.stage.cgroup / "agent",
        outbound_port=15001,
        inbound_port=15006,
        joining=joining,
    )
    node.stage.start(None, _load_without_a_compiler, request, ahead, cgroup="agent").receive(60)
    after = _programs(node)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
