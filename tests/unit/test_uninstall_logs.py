"""What uninstalling leaves of the logs' folder: nothing of the agent's own, and all that is somebody's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.config import AgentConfig, Kubernetes
from nodeagent.uninstall import uninstall
from tests.uninstalled import document


def config(folder: Path) -> AgentConfig:
    return AgentConfig.model_validate(document(folder))


def test_positions_and_empty_folders_go(tmp_path: Path) -> None:
    state = tmp_path / "logs"
    (state / "buffer" / "all").mkdir(parents=True)
    (state / "buffer" / "all" / "cursor").touch()
    (state / "positions").touch()
    removed = {each.path for each in uninstall(config(tmp_path))}
    assert removed == {str(state / "positions"), str(state / "buffer"), str(state)}
    assert not state.exists()


def test_what_no_sink_has_stays_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "logs"
    letters = state / "dead-letters" / "all.jsonl"
    segment = state / "buffer" / "all" / "000000000001.segment"
    for path in (letters, segment, state / "positions"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    removed = {each.path for each in uninstall(config(tmp_path))}
    assert removed == {str(state / "positions")}
    assert letters.exists()
    assert segment.exists()
    assert str(letters) in caplog.text
    assert str(segment) in caplog.text


def test_without_a_folder_there_is_nothing_to_remove(tmp_path: Path) -> None:
    assert uninstall(config(tmp_path)) == []


def test_on_a_cluster_positions_go_where_the_configuration_says_nothing_of_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: who uninstalls by kubectl alone has the base's configuration; a node elsewhere had no logs at all."""
    state = tmp_path / "logs"
    monkeypatch.setattr("nodeagent.uninstall.STATE_DIRECTORY", state)
    given = config(tmp_path).model_copy(update={"logs": None})
    for kubernetes, there in ((None, True), (Kubernetes(kubeconfig=tmp_path / "none"), False)):
        state.mkdir(exist_ok=True)
        (state / "positions").touch()
        monkeypatch.setattr("nodeagent.uninstall._marks", lambda _: iter(()))
        uninstall(given.model_copy(update={"kubernetes": kubernetes}))
        assert state.exists() == there
