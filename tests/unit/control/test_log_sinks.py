"""A sink that cannot begin: it alone fails, by name, and everything else is read and delivered."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from nodeagent.config import AgentConfig
from nodeagent.control import logs
from nodeagent.control.logs import NodeLogs, prepare
from nodeagent.errors import ConfigError
from nodeagent.messages import AskCollector, Collecting, CollectorRows
from nodeagent.parts import Parts
from nodeagent.telemetry import metrics
from nodeagent.telemetry.store import Store
from tests.uninstalled import document
from tests.unit.control.test_log_collector import FakeSupervisor
from tests.waiting import until

ROWS = [{"name": name, "trouble": ""} for name in ("good", "bad")]


def playing(folder: Path, play: Callable[[NodeLogs, FakeSupervisor, Store], Awaitable[None]]) -> None:
    """Run *play* with logs of which the folder of sink ``bad`` cannot be made."""
    (folder / "mounted").write_text("no folder")
    sinks = [{"name": name, "file": {"path": str(folder / name / "x.log")}} for name in ("good", "mounted/bad")]
    given = document(folder)
    given["logs"]["sinks"] = [{**each, "name": str(each["name"]).rpartition("/")[2]} for each in sinks]

    async def run() -> None:
        config = AgentConfig.model_validate(given)
        assert config.logs is not None
        supervisor = FakeSupervisor()
        store = Store()
        made = NodeLogs(asyncio.get_running_loop(), supervisor, config, store, config.logs)
        parts = Parts()
        async with made.run(parts):
            await until(lambda: supervisor.forked)
            try:
                await play(made, supervisor, store)
            finally:
                parts.stop()
                supervisor.forked[0].end.close()
                if made.collector.pid:
                    made.collector.exited(made.collector.pid, 0)

    asyncio.run(run())


def test_a_folder_that_cannot_be_made_is_one_sink_s_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ASK_SECONDS", 0.01)

    async def play(made: NodeLogs, supervisor: FakeSupervisor, store: Store) -> None:
        collector = supervisor.forked[0]

        def unanswered() -> bool:
            """Answer what was asked; True: something was."""
            heard = collector.heard()
            for each in heard:
                if isinstance(each, AskCollector):
                    collector.say(CollectorRows(each.number, [], ROWS, (), more=False))
            return bool(heard)

        async def report() -> None:
            reporting = asyncio.ensure_future(made.report())
            await until(lambda: not unanswered() and reporting.done())

        def failing() -> Mapping[str, float]:
            return {name: store.value(metrics.LOG_SINK_FAILING, (name,)) for name in ("good", "bad")}

        made.collector.forked(1, 40)
        collector.say(Collecting())
        await until(lambda: made.collector.missing() == [])
        (words,) = [each for each in made.warnings() if "sink" in each]
        assert words.startswith("logs: sink bad: its folder") and "Not a directory" in words
        assert "logs/sinks is mounted wherever logs.stateDirectory is" in words
        await report()
        assert failing() == {"good": 0, "bad": 1}
        assert (tmp_path / "good").is_dir()
        (tmp_path / "mounted").unlink()
        await until(lambda: not unanswered() and not any("sink bad" in each for each in made.warnings()))
        await report()
        assert failing() == {"good": 0, "bad": 0}

    playing(tmp_path, play)


def test_on_a_read_only_file_system_it_is_said_what_would_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(ConfigError, match=r"Read-only file system; .*daemonset/components/logs mounts") as raised:
        prepare(tmp_path / "new", "logs.stateDirectory")
    assert "CAP_CHOWN" not in str(raised.value)
