"""An error of the command line says what is wrong once, and what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from nodeagent import config
from nodeagent.cli.lab import lab
from nodeagent.cli.main import main
from nodeagent.errors import ConfigError
from nodeagent.lab import Lab
from nodeagent.resources import load
from nodeagent.resources.part import Part


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("run -c", "write one (docs/configuration.md), or name another with -c"),
        ("ca serve -c", "write one (docs/configuration.md), or name another with -c"),
        ("install --dry-run -f", "is its name right?"),
        ("logs import", "is its name right?"),
        ("inject -f", "is its name right?"),
        ("inject -f /dev/null --values", "is its name right?"),
    ],
)
def test_a_file_that_is_not_there_is_named_once_with_a_next_step(
    command: str, step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "none.yaml")
    said = _said(capsys, *command.split(), path)
    assert said.count(path) == 1
    assert "Errno" not in said
    assert said.strip().endswith(f"cannot be read: No such file or directory; {step}")


def _kubeconfig(folder: Path, **changes: object) -> Path:
    document = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
    } | changes  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return path


def test_a_server_that_does_not_answer_is_told_with_who_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{held.getsockname()[1]}"
        path = _kubeconfig(tmp_path, clusters=[{"name": "a", "cluster": {"server": server}}])
        said = _said(capsys, "uninstall", "--cluster", "--kubeconfig", str(path))
    assert f"{server}/" in said
    assert "cannot connect: Connection refused: is the API server up?" in said
    assert f"named by the kubeconfig {path}; --kubeconfig" in said
    assert "Errno" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"current-context": None}, "current-context is missing: `kubectl config use-context NAME` sets it"),
        ({"current-context": "b"}, "context 'b' is missing: "),
        ({"users": None}, "users is missing: "),
        ({"users": [{"name": "a", "user": {"client-certificate": "/nope"}}]}, "/nope: cannot be read: No such file"),
    ],
)
def test_what_a_kubeconfig_lacks_is_told_with_a_next_step(
    changes: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _said(capsys, "uninstall", "--cluster", "--kubeconfig", str(_kubeconfig(tmp_path, **changes)))
    assert words in said
    assert "--kubeconfig, or KUBECONFIG, names another" in said


@pytest.mark.parametrize("value", ["no", "yes", "5", "1.5", "0x10"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("node", "node: {value}"),
        ("source", "source: {value}"),
        ("services.0.unit", "services: [{{unit: {value}}}]"),
        ("extensionProviders.0.name", "extensionProviders: [{{name: {value}}}]"),
        (
            "logs.routes.0.tags.0",
            "logs: {{sinks: [{{name: a, stdout: {{}}}}], routes: [{{tags: [{value}], sinks: [a]}}]}}",
        ),
    ],
)
def test_a_text_that_yaml_takes_for_something_else_wants_quotation_marks(
    tmp_path: Path, key: str, text: str, value: str
) -> None:
    path = tmp_path / "agent.yaml"
    good = {"source": "source: /", "node": "node: a"}
    lines = {**good, key: text.format(value=value)}
    path.write_text("\n".join([*lines.values(), "redirect: {cgroup: /}", "identity: {caDirectory: /ca}"]))
    with pytest.raises(ConfigError, match=rf"{key}: a (text|path) is expected, not .*: put it in quotation marks"):
        config.load(path)


def test_so_does_one_of_a_policy_or_of_a_manifest() -> None:
    with pytest.raises(ConfigError, match="name: False: a text is expected: put it in quotation marks"):
        Part("", {"name": False}).text("name")
    with pytest.raises(ConfigError, match=r"a\[0\]: 5: a text that is not empty is expected: put it in"):
        Part("", {"a": [5]}).words("a")
    with pytest.raises(ConfigError, match="allowed: string: put it in quotation marks"):
        load.parse("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: no}\n", "a.yaml")


def test_an_empty_lab_says_what_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pods: list[str] = []
    monkeypatch.setattr(Lab, "up", lambda *_, **__: SimpleNamespace(pods=pods, state="/run/x"))
    empty = CliRunner().invoke(lab, ["up", "--name", "tried"])
    assert "it is empty: -f names files" in empty.stderr
    assert "nodeagent lab up --name tried -f app.yaml --mode nodeagent" in empty.stderr
    pods.append("a")
    assert "empty" not in CliRunner().invoke(lab, ["up", "--name", "tried"]).stderr
