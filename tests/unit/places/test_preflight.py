"""What ``nodeagent check`` says of NRI."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeagent.apart import apart
from nodeagent.places.preflight import NriUnavailable, _next_step, try_nri
from tests.fakes.nri import FakeNri
from tests.waiting import until


def tried(runtime: FakeNri) -> str:
    """Return what is said of *runtime*. Raises NriUnavailable."""

    async def main() -> str:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def runs() -> None:
            async with runtime.running():
                loop.call_soon_threadsafe(over.set)
                await asyncio.Event().wait()

        running = asyncio.create_task(apart("a runtime", runs))
        await over.wait()
        try:
            return await asyncio.to_thread(try_nri, runtime.path, "")
        finally:
            running.cancel()
            await until(running.done)

    return asyncio.run(main())


@pytest.mark.parametrize(("patience", "words"), [(10.0, "10 s for an answer"), (0.5, "less than 2 s")])
def test_who_waits_and_for_how_long_is_told_and_the_plugin_is_never_asked(
    tmp_path: Path, patience: float, words: str
) -> None:
    runtime = FakeNri(tmp_path / "nri.sock", patience=patience)
    said = tried(runtime)
    assert said.startswith("'fake' '2.0' asks before it makes a container, and waits")
    assert words in said
    assert not runtime.ready()


def test_a_runtime_that_refuses_plugins_is_named(tmp_path: Path) -> None:
    with pytest.raises(NriUnavailable, match="refuses the plugin: 'too many'"):
        tried(FakeNri(tmp_path / "nri.sock", refusal="too many"))


@pytest.mark.parametrize(
    ("runtime", "step"),
    [
        ("'containerd' '1.6.20'", "containerd 1.6.20 has no NRI: containerd 2"),
        ("'containerd' 'v1.7.27'", 'has it off by default: in its config.toml, [plugins."io.containerd.nri.v1.nri"]'),
        ("'containerd' '2.4.2+unknown'", "has it on by default"),
        ("'cri-o' '1.33.0'", "[crio.nri] wants enable_nri = true"),
        ("", "containerd 2, 1.7 and CRI-O from 1.26 on"),
    ],
)
def test_what_to_do_where_there_is_none(tmp_path: Path, runtime: str, step: str) -> None:
    assert step in _next_step(runtime)
    with pytest.raises(NriUnavailable) as refused:
        try_nri(tmp_path / "nri.sock", runtime)
    assert f"kubernetes.nri: {tmp_path}/nri.sock: there is no such socket" in str(refused.value)
    assert str(refused.value).endswith(_next_step(runtime))
